"""The rules of the settings that depend on their form or on other settings: one case for each."""

import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import SecretStr, ValidationInfo

from server.access.principal import name_problem
from server.access.tokens import ALGORITHMS, SYMMETRIC
from server.settings.secret_key import MIN_CHARACTERS
from storage.session import parse_url

_JWKS_URL = re.compile(r"https?://[^/\s@]+(/\S*)?|file:///\S+")
_SHORT_SECRET = f"must have {MIN_CHARACTERS} characters or more"
_ENDPOINT = re.compile(r"https?://[^/\s@]+:\d{1,5}/?")


def problem_of(value: object, info: ValidationInfo) -> str | None:
    """Return what is wrong with a setting, None if nothing is; a setting above may be missing."""
    environment = info.data.get("environment", "development")
    for rules in (_serving, _access, _secrets, _database):
        if problem := rules(value, info, environment):
            return problem
    return None


def _serving(value: object, info: ValidationInfo, environment: str) -> str | None:
    given = info.data
    match info.field_name, value:
        case "debug", True if environment == "production":
            return "must be false in production"
        case "tls_cert_file", None if environment == "production":
            if not given.get("tls_terminated_upstream", True):
                return (
                    "must be set in production; or TLS_TERMINATED_UPSTREAM, "
                    "if a proxy or a mesh in front of the service terminates TLS"
                )
        case "tls_key_file", _ if "tls_cert_file" in given:
            if bool(value) != bool(given["tls_cert_file"]):
                return "must be set together with TLS_CERT_FILE"
        case "tls_client_ca_file", Path() if given.get("tls_cert_file", True) is None:
            return "needs TLS_CERT_FILE"
        case "max_concurrent_calls", int(calls) if calls < given.get("threads_per_worker", 1):
            return f"must be {given['threads_per_worker']} or more, as THREADS_PER_WORKER is"
        case "otel_exporter_endpoint", str(endpoint) if not _ENDPOINT.fullmatch(endpoint):
            return "must be a URL such as http://localhost:4317 or https://host:4317"
    return None


def _access(value: object, info: ValidationInfo, environment: str) -> str | None:
    given = info.data
    match info.field_name, value:
        case "auth_mode", None if environment != "development":
            return f"must be set in {environment}, even if to none"
        case "auth_mode", "mtls" if not given.get("tls_client_ca_file"):
            return "mtls needs TLS_CLIENT_CA_FILE"
        case "algorithm", str(names) if not listed(names) <= ALGORITHMS:
            return f"must be some of {', '.join(sorted(ALGORITHMS))}"
        case "jwks_url", str() | None as url:
            return _jwks_problem(url, info, environment)
        case "jwt_issuer" | "jwt_audience", None if given.get("jwks_url"):
            return "must be set with a JWKS: its issuer signs tokens for others too"
        case "mtls_scopes", dict(scopes):
            return next(filter(None, map(_scope_problem, scopes.keys() - {"*"})), None)
    return None


def _jwks_problem(url: str | None, info: ValidationInfo, environment: str) -> str | None:
    if url and not _JWKS_URL.fullmatch(url):
        return "must be a URL such as https://host/jwks.json or file:///jwks.json"
    if url and environment == "production" and url.startswith("http:"):
        return "must not be http in production: the keys could be replaced"
    if isinstance(source := jwks_source(url), Path) and not source.is_file():
        return "does not name a file"
    public = listed(info.data.get("algorithm", SYMMETRIC)) - {SYMMETRIC}
    if info.data.get("auth_mode") == "jwt" and bool(public) != bool(url):
        return "must be set with RS256, ES256 and EdDSA, and only with them"
    return None


def _scope_problem(name: str) -> str | None:
    kind, _, rest = name.partition(":")
    if kind not in {"uri", "dns", "cn"}:
        kinds = ["uri"] if "://" in name else ["dns", "cn"]
        spellings = " or ".join(f'"{kind}:{name}"' for kind in kinds)
        return f'"{name}" has no kind; write {spellings}'
    problem = name_problem(rest)
    return problem and f"no certificate is accepted by the name {name!r}: {problem}"


def _secrets(value: object, info: ValidationInfo, environment: str) -> str | None:
    match info.field_name, value:
        case "secret_key", None if environment != "development":
            return f"{_SHORT_SECRET} in {environment}"
        case "secret_key" | "secret_key_previous", SecretStr() as key if len(key) < MIN_CHARACTERS:
            if environment != "development":
                return f"{_SHORT_SECRET} in {environment}"
            if info.data.get("auth_mode") == "jwt":
                return f"{_SHORT_SECRET} with AUTH_MODE=jwt"
    return None


def _database(value: object, info: ValidationInfo, environment: str) -> str | None:
    given, host = info.data, info.data.get("db_host")
    match info.field_name, value:
        case "database_url" | "database_direct_url", SecretStr() as url if not parse_url(
            url.get_secret_value()
        ):
            return "must be a URL such as postgresql://user:password@host/name"
        case "database_url", SecretStr() if host:
            return "set either this or DB_HOST, not both"
        case "database_url", None if environment != "development" and not host:
            return f"must be set (or DB_HOST) in {environment}"
        case "database_direct_url", SecretStr() if not (given.get("database_url", True) or host):
            return "needs DATABASE_URL (or DB_HOST), which may lead to a pooler"
    return None


def listed(names: str) -> frozenset[str]:
    """Split a list at its commas."""
    return frozenset(name.strip() for name in names.split(","))


def jwks_source(url: str | None) -> Path | str | None:
    """Return the path that a file URL names, and any other URL as it is."""
    if url and url.startswith("file:"):
        return Path(url2pathname(urlsplit(url).path))
    return url
