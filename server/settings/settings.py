"""Read the settings of `.env.example` and check them before anything starts."""

import re
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, Json, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL

from server.access.principal import Scope
from server.access.tokens import ED25519, EDDSA, MAX_TOKEN_MINUTES, SYMMETRIC
from server.settings.cores import usable_cores
from server.settings.rules import jwks_source, listed, problem_of
from server.settings.secret_key import kept_key
from storage.session import DRIVER, parse_url

_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)


class SettingsError(Exception):
    """Settings that cannot be used: a line for each, with its name and without its value."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Settings(BaseSettings):
    """The settings of the service. The last word in the name of a duration is its unit."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    app_name: str = "task-service"
    version: str = metadata.version("task-service")
    environment: Literal["development", "staging", "production"] = "development"
    debug: bool = False
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None = None

    grpc_host: str = "127.0.0.1"
    grpc_port: int = Field(50051, ge=0, le=65535)
    workers: int | None = Field(None, ge=1, le=256)
    worker_max_rss_mb: int | None = Field(None, ge=1, le=1_000_000)
    threads_per_worker: int = Field(4, ge=1, le=256)
    shutdown_delay_seconds: float | None = Field(None, ge=0, le=600)
    shutdown_grace_seconds: float = Field(30, ge=0, le=3600)
    health_port: int | None = Field(None, ge=0, le=65535)
    reflection: Literal["on", "authenticated", "off"] | None = None
    http_port: int = Field(8080, ge=0, le=65535)
    cors_origins: str = ""

    tls_terminated_upstream: bool = False
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None

    auth_mode: Literal["none", "jwt", "mtls"] | None = None
    algorithm: str = SYMMETRIC
    jwks_url: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    access_token_expire_minutes: float = Field(30, gt=0, le=MAX_TOKEN_MINUTES)
    mtls_scopes: Json[dict[str, frozenset[Scope]]] = Field("{}")  # type: ignore[arg-type]

    max_concurrent_calls: int | None = Field(None, ge=1, le=100_000)
    rate_limit_per_second: int | None = Field(None, ge=1, le=1_000_000)

    metrics_host: str | None = None
    metrics_port: int | None = Field(None, ge=0, le=65535)
    otel_enabled: bool = True
    otel_service_name: str | None = None
    otel_exporter_endpoint: str | None = None

    db_host: str | None = None
    database_url: SecretStr | None = None
    database_direct_url: SecretStr | None = None
    db_port: int = Field(5432, ge=1, le=65535)
    db_name: str = "tasks"
    db_user: str = "tasks"
    db_password: SecretStr | None = None
    prepared_statements: bool = True
    data_dir: Path = Path(".data")

    secret_key: SecretStr | None = None
    secret_key_previous: SecretStr | None = None
    event_retention_days: float = Field(30, gt=0, le=100 * 365)
    deleted_retention_days: float = Field(30, gt=0, le=100 * 365)

    # Used beside calls: readiness, maintenance (two), the census, the announcer, the reader of
    # watches, its listener while it connects, and two watches that read their first tasks.
    own_connections: ClassVar[int] = 9
    pool_overflow: ClassVar[int] = 10

    @field_validator("*")
    @classmethod
    def _check(cls, value: object, info: ValidationInfo) -> object:
        # It sees the fields above: so all errors are reported together.
        if problem := problem_of(value, info):
            raise ValueError(problem)
        return "none" if info.field_name == "auth_mode" and value is None else value

    @classmethod
    def load(cls) -> Self:
        """Read and check the settings. Raises: SettingsError."""
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError(_readable(error)) from None
        except UnicodeDecodeError:
            raise SettingsError([".env: must be UTF-8 text"]) from None

    @property
    def level(self) -> Literal["DEBUG", "INFO", "WARNING", "ERROR"]:
        """Return the lowest level that is logged."""
        return self.log_level or ("DEBUG" if self.debug else "INFO")

    @property
    def explicit_database_url(self) -> str | None:
        """Return the URL of the configured database; None for the embedded one."""
        if self.database_url:
            return _rendered(self.database_url)
        if not self.db_host:
            return None
        return URL.create(
            DRIVER,
            username=self.db_user,
            password=self.db_password.get_secret_value() if self.db_password else None,
            host=self.db_host,
            port=self.db_port,
            database=self.db_name,
        ).render_as_string(hide_password=False)

    @property
    def direct_database_url(self) -> str | None:
        """Return the URL of PostgreSQL itself, where the database is reached through a pooler."""
        return _rendered(self.database_direct_url)

    @property
    def pool_size(self) -> int:
        """Return how many connections a process keeps: one for each thread that may need one."""
        return self.threads_per_worker + self.own_connections

    @property
    def database_connections(self) -> int:
        """Return how many connections all workers may open to PostgreSQL itself."""
        listener = 1
        pool = 0 if self.direct_database_url else self.pool_size + self.pool_overflow
        return self.worker_count * (pool + listener)

    @property
    def worker_count(self) -> int:
        """Return how many processes serve: one in development, else one for each usable core."""
        return self.workers or (1 if self.environment == "development" else usable_cores())

    @property
    def algorithms(self) -> frozenset[str]:
        """Return the algorithms of signatures, by PyJWT's names."""
        return frozenset(EDDSA if name == ED25519 else name for name in listed(self.algorithm))

    @property
    def jwks_source(self) -> Path | str | None:
        return jwks_source(self.jwks_url)

    @property
    def call_limit(self) -> int:
        """Return how many calls a process has in flight: running, or waiting for a thread."""
        return self.max_concurrent_calls or 16 * self.threads_per_worker

    @property
    def calls_per_second(self) -> int | None:
        """Return how many calls a second a process accepts of a principal; None for no limit."""
        is_unlimited = self.environment == "development" or self.auth_mode == "none"
        return self.rate_limit_per_second or (None if is_unlimited else 500)

    @property
    def drain_delay_seconds(self) -> float:
        """Return how long to serve after NOT_SERVING, until balancers send no more calls."""
        if self.shutdown_delay_seconds is not None:
            return self.shutdown_delay_seconds
        return 0 if self.environment == "development" else 5

    @property
    def reflection_for(self) -> Literal["on", "authenticated", "off"]:
        """Return whether reflection is open to all, to authenticated clients, or off."""
        return self.reflection or ("on" if self.environment == "development" else "authenticated")

    @property
    def metrics_on(self) -> str:
        """Return the host of the metrics port, which needs no credentials."""
        local = "127.0.0.1" if self.environment == "development" else self.grpc_host
        return self.metrics_host or local

    def key(self) -> bytes:
        """Return the secret that keys are derived from, or the kept one. Raises: SettingsError."""
        if self.secret_key is not None:
            return self.secret_key.get_secret_value().encode()
        try:
            return kept_key(self.data_dir)
        except OSError as error:
            raise SettingsError([f"DATA_DIR: cannot be used: {error}"]) from error

    def accepted_keys(self) -> list[bytes]:
        """Return the secrets that verify tokens; the first also signs. Raises: SettingsError."""
        previous = self.secret_key_previous
        return [self.key(), *([previous.get_secret_value().encode()] if previous else [])]


def _rendered(secret: SecretStr | None) -> str | None:
    url = parse_url(secret.get_secret_value()) if secret else None
    return url.render_as_string(hide_password=False) if url else None


def _readable(error: ValidationError) -> list[str]:
    return sorted(_line(mistake) for mistake in error.errors(include_url=False))


def _line(mistake: ErrorDetails) -> str:
    message = mistake["msg"].removeprefix("Value error, ")
    name = str(mistake["loc"][0]).upper()
    if name.endswith("_PORT") and _SERVICE_LINK.match(str(mistake["input"])):
        service = name.removesuffix("_PORT").lower()
        message = (
            f"is a link to a Service named {service!r}, which Kubernetes adds to the environment "
            "of its pods: set enableServiceLinks: false in the pod's spec, or set this variable"
        )
    return f"{name}: {message}"
