"""Limit the connections and their age, and encrypt them."""

import grpc

from server.calls.wire import MAX_BATCH_REQUEST_BYTES
from server.network.certificates import Identity, certificates
from server.settings import Settings

# In one process, on each of its ports; a connection over the limit is closed.
MAX_CONNECTIONS = 4000
# Open calls of one connection.
MAX_STREAMS = 256
# For TLS and the first frames of HTTP/2.
HANDSHAKE_SECONDS = 10.0
# A connection without a call is closed.
IDLE_SECONDS = 300.0
# Then a connection takes no more calls, so that clients also connect to new servers.
AGE_SECONDS = 600.0
# Then the remaining calls of an old connection are ended.
AGE_GRACE_SECONDS = 60.0
MIN_PING_INTERVAL_SECONDS = 10.0
# Enough for credentials that are far too large to reach the code that rejects them.
MAX_METADATA_BYTES = 128 * 1024
# Frees the resources of a client that vanished.
_KEEPALIVE_SECONDS = 30
_KEEPALIVE_ANSWER_SECONDS = 10


def options() -> list[tuple[str, int]]:
    """Return the options of a server: the limits that gRPC's core enforces, and the socket's."""
    pending = MAX_CONNECTIONS * MAX_STREAMS
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.server_handshake_timeout_ms", _ms(HANDSHAKE_SECONDS)),
        ("grpc.max_connection_idle_ms", _ms(IDLE_SECONDS)),
        # A tenth more or less, so that connections made at once do not end at once (gRFC A9).
        ("grpc.max_connection_age_ms", _ms(AGE_SECONDS)),
        ("grpc.max_connection_age_grace_ms", _ms(AGE_GRACE_SECONDS)),
        ("grpc.keepalive_time_ms", _ms(_KEEPALIVE_SECONDS)),
        ("grpc.keepalive_timeout_ms", _ms(_KEEPALIVE_ANSWER_SECONDS)),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(MIN_PING_INTERVAL_SECONDS)),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # Ended streams are not freed at once. They have a limit of their own: a client that keeps
        # max_concurrent_streams is not rejected, one that resets streams without end is.
        ("grpc.http2.max_deallocating_streams", MAX_STREAMS),
        # The core drops calls at random when over 1,000 wait for the polling thread: a bare
        # CANCELLED for any client. The limits of connections and of their streams bound them.
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", pending),
        # Two different limits would reject what lies between them at random.
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        # Also after decompression.
        ("grpc.max_receive_message_length", MAX_BATCH_REQUEST_BYTES),
    ]


def credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Return TLS with the newest certificates, None for plaintext. Raises: SettingsError."""
    files = certificates(settings)
    if files is None:
        return None

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        identity = files.renewed()
        return identity and _configuration(identity)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(files.identity),
        renewed,  # type: ignore[arg-type]  # None means: no change.
        require_client_authentication=files.identity.client_ca is not None,
    )


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.chain)], root_certificates=identity.client_ca
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
