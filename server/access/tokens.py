"""Name the algorithms of tokens, and limit their lifetime."""

MAX_TOKEN_MINUTES = 24 * 60
SYMMETRIC = "HS256"
EDDSA, ED25519 = "EdDSA", "Ed25519"  # Two names of one algorithm: RFC 8037's, and RFC 9864's.
ALGORITHMS = frozenset({SYMMETRIC, "RS256", "ES256", EDDSA, ED25519})
