"""Read the settings from the environment and `.env`, and check them before anything starts.

`.env.example` lists all of them.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import Field, Json, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL

from server.access.principal import Scope, name_problem
from server.access.tokens import ALGORITHMS, ED25519, EDDSA, MAX_TOKEN_MINUTES, SYMMETRIC
from server.settings.cores import usable_cores
from server.settings.secret_key import MIN_CHARACTERS, kept_key
from storage.session import DRIVER, parse_url

_MAX_RETENTION_DAYS = 100 * 365
_NAME_KINDS = "uri", "dns", "cn"
_JWKS_URL = re.compile(r"https?://[^/\s@]+(/\S*)?|file:///\S+")
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)
_ENDPOINT = re.compile(r"https?://[^/\s@]+:\d{1,5}/?")


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
    tls_cert_file: Path | None = Field(None, validate_default=True)
    tls_key_file: Path | None = Field(None, validate_default=True)
    tls_client_ca_file: Path | None = None

    auth_mode: Literal["none", "jwt", "mtls"] | None = Field(None, validate_default=True)
    algorithm: str = SYMMETRIC
    jwks_url: str | None = Field(None, validate_default=True)
    jwt_issuer: str | None = Field(None, validate_default=True)
    jwt_audience: str | None = Field(None, validate_default=True)
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
    database_url: SecretStr | None = Field(None, validate_default=True)
    database_direct_url: SecretStr | None = None
    db_port: int = Field(5432, ge=1, le=65535)
    db_name: str = "tasks"
    db_user: str = "tasks"
    db_password: SecretStr | None = None
    db_statement_timeout_seconds: float = Field(30, ge=0.001, le=3600)
    prepared_statements: bool = True
    data_dir: Path = Path(".data")

    secret_key: SecretStr | None = Field(None, validate_default=True)
    secret_key_previous: SecretStr | None = None
    event_retention_days: float = Field(30, gt=0, le=_MAX_RETENTION_DAYS)
    deleted_retention_days: float = Field(30, gt=0, le=_MAX_RETENTION_DAYS)

    # Used beside calls: readiness, maintenance (two), the census, the announcer, the reader of
    # watches, its listener while it connects, and two watches that read their first tasks.
    own_connections: ClassVar[int] = 9
    pool_overflow: ClassVar[int] = 10

    # A validator sees the fields above its own: all errors are reported together.

    @field_validator("debug")
    @classmethod
    def _check_debug(cls, debug: bool, info: ValidationInfo) -> bool:
        if debug and info.data.get("environment") == "production":
            raise ValueError("must be false in production")
        return debug

    @field_validator("tls_cert_file")
    @classmethod
    def _check_tls(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        upstream = info.data.get("tls_terminated_upstream", True)
        if info.data.get("environment") == "production" and not (file or upstream):
            raise ValueError(
                "must be set in production; or TLS_TERMINATED_UPSTREAM, "
                "if a proxy or a mesh in front of the service terminates TLS"
            )
        return file

    @field_validator("tls_key_file")
    @classmethod
    def _check_tls_key(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_cert_file" in info.data and bool(file) != bool(info.data["tls_cert_file"]):
            raise ValueError("must be set together with TLS_CERT_FILE")
        return file

    @field_validator("tls_client_ca_file")
    @classmethod
    def _check_client_ca(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file and info.data.get("tls_cert_file", True) is None:
            raise ValueError("needs TLS_CERT_FILE")
        return file

    @field_validator("auth_mode")
    @classmethod
    def _check_auth_mode(cls, mode: str | None, info: ValidationInfo) -> str:
        environment = info.data.get("environment", "development")
        if mode is None and environment != "development":
            raise ValueError(f"must be set in {environment}, even if to none")
        if mode == "mtls" and not info.data.get("tls_client_ca_file"):
            raise ValueError("mtls needs TLS_CLIENT_CA_FILE")
        return mode or "none"

    @field_validator("algorithm")
    @classmethod
    def _check_algorithm(cls, names: str) -> str:
        if not _listed(names) <= ALGORITHMS:
            raise ValueError(f"must be some of {', '.join(sorted(ALGORITHMS))}")
        return names

    @field_validator("jwks_url")
    @classmethod
    def _check_jwks(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url and not _JWKS_URL.fullmatch(url):
            raise ValueError("must be a URL such as https://host/jwks.json or file:///jwks.json")
        if url and info.data.get("environment") == "production" and url.startswith("http:"):
            raise ValueError("must not be http in production: the keys could be replaced")
        if isinstance(source := _jwks_source(url), Path) and not source.is_file():
            raise ValueError("does not name a file")
        public = _listed(info.data.get("algorithm", SYMMETRIC)) - {SYMMETRIC}
        if info.data.get("auth_mode") == "jwt" and bool(public) != bool(url):
            raise ValueError("must be set with RS256, ES256 and EdDSA, and only with them")
        return url

    @field_validator("jwt_issuer", "jwt_audience")
    @classmethod
    def _check_claims(cls, expected: str | None, info: ValidationInfo) -> str | None:
        if not expected and info.data.get("jwks_url"):
            raise ValueError("must be set with a JWKS: its issuer signs tokens for others too")
        return expected

    @field_validator("mtls_scopes")
    @classmethod
    def _check_names(cls, scopes: dict[str, frozenset[Scope]]) -> dict[str, frozenset[Scope]]:
        for name in scopes.keys() - {"*"}:
            kind, _, rest = name.partition(":")
            if kind not in _NAME_KINDS:
                raise ValueError(f'"{name}" has no kind; write {_spellings(name)}')
            if problem := name_problem(rest):
                raise ValueError(f"no certificate is accepted by the name {name!r}: {problem}")
        return scopes

    @field_validator("max_concurrent_calls")
    @classmethod
    def _check_calls(cls, calls: int | None, info: ValidationInfo) -> int | None:
        threads = info.data.get("threads_per_worker", 1)
        if calls is not None and calls < threads:
            raise ValueError(f"must be {threads} or more, as THREADS_PER_WORKER is")
        return calls

    @field_validator("otel_exporter_endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str | None) -> str | None:
        if endpoint and not _ENDPOINT.fullmatch(endpoint):
            raise ValueError("must be a URL such as http://localhost:4317 or https://host:4317")
        return endpoint

    @field_validator("database_url", "database_direct_url")
    @classmethod
    def _check_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url and parse_url(url.get_secret_value()) is None:
            raise ValueError("must be a URL such as postgresql://user:password@host/name")
        return url

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        host, environment = info.data.get("db_host"), info.data.get("environment", "development")
        if url and host:
            raise ValueError("set either this or DB_HOST, not both")
        if environment != "development" and not (url or host):
            raise ValueError(f"must be set (or DB_HOST) in {environment}")
        return url

    @field_validator("database_direct_url")
    @classmethod
    def _check_direct(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if url and not (info.data.get("database_url", True) or info.data.get("db_host")):
            raise ValueError("needs DATABASE_URL (or DB_HOST), which may lead to a pooler")
        return url

    @field_validator("secret_key", "secret_key_previous")
    @classmethod
    def _check_secret(cls, key: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        environment = info.data.get("environment", "development")
        if key is None and (info.field_name != "secret_key" or environment == "development"):
            return key
        if len(key or "") < MIN_CHARACTERS:
            least = f"must have {MIN_CHARACTERS} characters or more"
            if environment != "development":
                raise ValueError(f"{least} in {environment}")
            if info.data.get("auth_mode") == "jwt":
                raise ValueError(f"{least} with AUTH_MODE=jwt")
        return key

    @classmethod
    def load(cls) -> Settings:
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
        return frozenset(EDDSA if name == ED25519 else name for name in _listed(self.algorithm))

    @property
    def jwks_source(self) -> Path | str | None:
        """Return the file or the URL of the issuer's public keys."""
        return _jwks_source(self.jwks_url)

    @property
    def call_limit(self) -> int:
        """Return how many calls a process has in flight: running, or waiting for a thread."""
        return self.max_concurrent_calls or 16 * self.threads_per_worker

    @property
    def calls_per_second(self) -> int | None:
        """Return how many calls of a principal a process accepts each second; None for any number.

        Without authentication all clients are one principal, which by default has no limit.
        """
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
        """Return the secret that keys are derived from; in development one kept in DATA_DIR.

        Raises: SettingsError, if DATA_DIR cannot be written, or others may read the key.
        """
        if self.secret_key is not None:
            return self.secret_key.get_secret_value().encode()
        try:
            return kept_key(self.data_dir)
        except OSError as error:
            raise SettingsError([f"DATA_DIR: cannot be used: {error}"]) from error

    def accepted_keys(self) -> list[bytes]:
        """Return the secrets by which tokens are accepted; new ones are made with the first.

        Raises: SettingsError, as `key`.
        """
        previous = self.secret_key_previous
        return [self.key(), *([previous.get_secret_value().encode()] if previous else [])]


def _spellings(name: str) -> str:
    """Suggest the kinds that a name without one may have."""
    kinds = ["uri"] if "://" in name else ["dns", "cn"]
    return " or ".join(f'"{kind}:{name}"' for kind in kinds)


def _listed(names: str) -> frozenset[str]:
    return frozenset(name.strip() for name in names.split(","))


def _jwks_source(url: str | None) -> Path | str | None:
    is_file = url is not None and url.startswith("file:")
    return Path(url2pathname(urlsplit(url).path)) if url and is_file else url


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
