"""Connections: over what they come, how many there are, and for how long."""

from __future__ import annotations

import grpc

from server.network.certificates import Identity, certificates
from server.settings import Settings

# A client that vanished gives back what it holds.
_KEEPALIVE_SECONDS = 30
_KEEPALIVE_ANSWER_SECONDS = 10


def options(settings: Settings) -> list[tuple[str, int]]:
    """The limits, as gRPC's core keeps them; the socket's too. Names: grpc's channel arguments."""
    metadata_bytes, streams = settings.max_metadata_bytes, settings.max_streams_per_connection
    pending = settings.max_connections_per_worker * streams
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_allowed_incoming_connections", settings.max_connections_per_worker),
        ("grpc.server_handshake_timeout_ms", _ms(settings.handshake_seconds)),
        ("grpc.max_connection_idle_ms", _ms(settings.connection_idle_seconds)),
        # A tenth more or less, so that connections made at once do not end at once (gRFC A9).
        ("grpc.max_connection_age_ms", _ms(settings.connection_age_seconds)),
        ("grpc.max_connection_age_grace_ms", _ms(settings.connection_age_grace_seconds)),
        ("grpc.keepalive_time_ms", _ms(_KEEPALIVE_SECONDS)),
        ("grpc.keepalive_timeout_ms", _ms(_KEEPALIVE_ANSWER_SECONDS)),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(settings.min_ping_interval_seconds)),
        ("grpc.max_concurrent_streams", streams),
        # A stream that is over is not yet forgotten. Were these counted with the others, a client
        # that keeps the limit would be refused; were they not counted, one that resets would not.
        ("grpc.http2.max_deallocating_streams", streams),
        # The core drops calls at random when over 1,000 wait for the polling thread: a bare
        # CANCELLED for any client. The limits of connections and of their streams bound them.
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", pending),
        # Were they two, what lies between them would be refused by chance.
        ("grpc.max_metadata_size", metadata_bytes),
        ("grpc.absolute_max_metadata_size", metadata_bytes),
        # After decompression, too.
        (
            "grpc.max_receive_message_length",
            max(settings.max_request_bytes, settings.max_batch_request_bytes),
        ),
    ]


def credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS with the certificates as they are when a connection is made; None for plaintext.

    gRPC's core takes TLS 1.2 and 1.3, with forward secrecy and authenticated encryption only.
    Raises: SettingsError.
    """
    files = certificates(settings)
    if files is None:
        return None

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        identity = files.renewed()
        return identity and _configuration(identity)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(files.identity),
        renewed,  # type: ignore[arg-type] # None means no change, say the docs.
        require_client_authentication=files.identity.client_ca is not None,
    )


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.chain)], root_certificates=identity.client_ca
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
