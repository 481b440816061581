"""Settings: read from the environment and `.env`, checked once, before anything starts.

`.env.example` lists them all with a line of meaning each.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Literal

from psycopg2 import ProgrammingError
from psycopg2.extensions import make_dsn, parse_dsn
from pydantic import (
    Field,
    FilePath,
    Json,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from server.principal import Scope, name_problem

_SECRET_KEY_CHARACTERS = 32
_DAY_SECONDS = 24 * 3600
_YEAR_SECONDS = 365 * _DAY_SECONDS
MAX_TOKEN_MINUTES = 24 * 60
_DRIVER = "postgresql+psycopg2"
_MAX_PORT = 65535
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_QUEUED_BYTES = 32 * 1024 * 1024
_MAX_UNREAD_BYTES = 16 * 1024**3
SYMMETRIC = "HS256"
EDDSA, ED25519 = "EdDSA", "Ed25519"
"""Two names of one algorithm: RFC 8037's, and RFC 9864's."""
_ALGORITHMS = frozenset({SYMMETRIC, "RS256", "ES256", EDDSA, ED25519})
_NAME_KINDS = "uri", "dns", "cn"
_JWKS_URL = re.compile(r"https?://[^/\s@]+(/\S*)?")
# Who uses the pool beside calls: readiness, maintenance (two), the census, the announcer, the one
# reader of watches, its listener while it connects, and two watches that read for themselves.
_OWN_CONNECTIONS = 9
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)
_ENDPOINT = re.compile(r"https?://[^/\s@]+:\d{1,5}/?")


class SettingsError(Exception):
    """Settings that cannot be used: one line for each, which names it and never shows a secret."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Settings(BaseSettings):
    """What the service can be told. Durations name their unit in their last word."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    app_name: str = "task-service"
    version: str = metadata.version("task-service")
    environment: Literal["development", "staging", "production"] = "development"
    debug: bool = False
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    grpc_host: str = "127.0.0.1"
    grpc_port: int = Field(50051, ge=0, le=65535)
    workers: int | None = Field(None, ge=1, le=256)
    threads_per_worker: int = Field(4, ge=1, le=256)
    max_watches_per_worker: int = Field(1000, ge=1, le=10_000)
    watch_bookmark_interval_seconds: float = Field(30, gt=0, le=3600)
    watch_stall_seconds: float = Field(10, gt=0, le=3600)
    shutdown_delay_seconds: float | None = Field(None, ge=0, le=600)
    shutdown_grace_seconds: float = Field(30, ge=0, le=3600)
    health_check_interval_seconds: float = Field(2, gt=0, le=60)
    health_port: int | None = Field(None, ge=0, le=65535)
    admin_enabled: bool = False
    metrics_host: str | None = None
    metrics_port: int | None = Field(None, ge=0, le=65535)
    reflection: Literal["on", "authenticated", "off"] | None = None

    tls_terminated_upstream: bool = False
    tls_cert_file: Path | None = Field(None, validate_default=True)
    tls_key_file: Path | None = Field(None, validate_default=True)
    tls_client_ca_file: Path | None = None
    max_connections_per_worker: int = Field(4000, ge=1, le=100_000)
    max_streams_per_connection: int = Field(256, ge=1, le=10_000)
    handshake_seconds: float = Field(10, ge=0.1, le=120)
    connection_idle_seconds: float = Field(300, ge=0.1, le=_DAY_SECONDS)
    connection_age_seconds: float = Field(600, ge=0.1, le=_DAY_SECONDS)
    connection_age_grace_seconds: float = Field(60, ge=0.1, le=_DAY_SECONDS)
    min_ping_interval_seconds: float = Field(10, ge=0.1, le=3600)
    max_metadata_bytes: int = Field(128 * 1024, ge=4 * 1024, le=1024 * 1024)
    # The largest request that keeps the rules has less than 16 KiB; a batch of them may have so
    # much that its answer still is within the 4 MiB that a client takes by default.
    max_request_bytes: int = Field(256 * 1024, ge=16 * 1024, le=_MAX_MESSAGE_BYTES)
    max_batch_request_bytes: int = Field(3 * 1024 * 1024, ge=16 * 1024, le=_MAX_MESSAGE_BYTES)
    max_unread_bytes: int = Field(64 * 1024 * 1024, ge=16 * 1024 * 1024, le=_MAX_UNREAD_BYTES)

    auth_mode: Literal["none", "jwt", "mtls"] | None = Field(None, validate_default=True)
    algorithm: str = SYMMETRIC
    jwks_file: FilePath | None = None
    jwks_url: str | None = Field(None, validate_default=True)
    jwks_refresh_seconds: float = Field(60, gt=0, le=24 * 3600)
    jwt_issuer: str | None = Field(None, validate_default=True)
    jwt_audience: str | None = Field(None, validate_default=True)
    access_token_expire_minutes: float = Field(30, gt=0, le=MAX_TOKEN_MINUTES)
    mtls_scopes: Json[dict[str, frozenset[Scope]]] = Field("{}")  # type: ignore[arg-type]

    max_concurrent_calls: int | None = Field(None, ge=1, le=100_000)
    request_timeout_seconds: float = Field(10, gt=0, le=3600)
    rate_limit_per_second: int | None = Field(None, ge=1, le=1_000_000)
    rate_limit_burst: int | None = Field(None, ge=1, le=1_000_000)
    max_watches_per_principal: int | None = Field(None, ge=1, le=10_000)

    slow_call_seconds: float = Field(1, gt=0, le=3600)
    task_count_interval_seconds: float = Field(60, ge=1, le=3600)
    otel_enabled: bool = True
    otel_service_name: str | None = None
    otel_exporter_endpoint: str | None = None
    otel_traces_sampler: str = "parentbased_traceidratio"
    otel_traces_sampler_arg: str | None = None
    db_trace_comments: bool = False

    db_host: str | None = None
    database_url: SecretStr | None = Field(None, validate_default=True)
    database_direct_url: SecretStr | None = None
    db_port: int = Field(5432, ge=1, le=65535)
    db_name: str = "tasks"
    db_user: str = "tasks"
    db_password: SecretStr | None = None
    db_pool_size: int | None = Field(None, ge=1, le=1000)
    db_max_overflow: int = Field(10, ge=0, le=1000, validate_default=True)
    db_pool_timeout_seconds: float = Field(2, gt=0, le=60)
    db_pool_recycle_seconds: float = Field(3600, gt=0, le=_YEAR_SECONDS)
    db_statement_timeout_seconds: float = Field(30, ge=0.001, le=3600)
    data_dir: Path = Path(".data")

    secret_key: SecretStr | None = Field(None, validate_default=True)
    secret_key_previous: SecretStr | None = None
    request_id_retention_hours: float = Field(24, gt=0, le=_YEAR_SECONDS / 3600)
    event_retention_days: float = Field(30, gt=0, le=100 * 365)
    deleted_retention_days: float = Field(30, gt=0, le=100 * 365)

    # Each looks back at fields above its own, so that these mistakes are told with all others.

    @field_validator("debug")
    @classmethod
    def _check_debug(cls, debug: bool, info: ValidationInfo) -> bool:
        if debug and info.data.get("environment") == "production":
            raise ValueError("must be false in production")
        return debug

    @field_validator("admin_enabled")
    @classmethod
    def _check_admin(cls, enabled: bool, info: ValidationInfo) -> bool:
        if enabled and info.data.get("health_port") is None:
            raise ValueError("needs HEALTH_PORT, the only port that has it")
        return enabled

    @field_validator("tls_cert_file")
    @classmethod
    def _check_tls(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        upstream = info.data.get("tls_terminated_upstream", True)
        if info.data.get("environment") == "production" and not (file or upstream):
            raise ValueError(
                "must be set in production; or TLS_TERMINATED_UPSTREAM, "
                "when a proxy or a mesh in front of the service does TLS"
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
        if not _listed(names) <= _ALGORITHMS:
            raise ValueError(f"must be some of {', '.join(sorted(_ALGORITHMS))}")
        return names

    @field_validator("jwks_url")
    @classmethod
    def _check_jwks(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url and not _JWKS_URL.fullmatch(url):
            raise ValueError("must be a URL such as https://host/.well-known/jwks.json")
        if url and info.data.get("environment") == "production" and url.startswith("http:"):
            raise ValueError("must be https in production: whoever gives the keys gives the tokens")
        file = info.data.get("jwks_file")
        if url and file:
            raise ValueError("set either this or JWKS_FILE, not both")
        public = _listed(info.data.get("algorithm", SYMMETRIC)) - {SYMMETRIC}
        if info.data.get("auth_mode") == "jwt" and bool(public) != bool(url or file):
            raise ValueError("is for RS256, ES256 and EdDSA, and they need it (or JWKS_FILE)")
        return url

    @field_validator("jwt_issuer", "jwt_audience")
    @classmethod
    def _check_claims(cls, expected: str | None, info: ValidationInfo) -> str | None:
        if not expected and (info.data.get("jwks_file") or info.data.get("jwks_url")):
            raise ValueError("must be set with a JWKS: its issuer has tokens for others too")
        return expected

    @field_validator("mtls_scopes")
    @classmethod
    def _check_names(cls, scopes: dict[str, frozenset[Scope]]) -> dict[str, frozenset[Scope]]:
        for name in scopes.keys() - {"*"}:
            kind, _, rest = name.partition(":")
            if kind not in _NAME_KINDS:
                raise ValueError(
                    f'"{name}" does not say which kind of name it is; write {_spellings(name)}'
                )
            if problem := name_problem(rest):
                raise ValueError(f"no certificate is taken by the name {name!r}: {problem}")
        return scopes

    @field_validator("max_concurrent_calls")
    @classmethod
    def _check_calls(cls, calls: int | None, info: ValidationInfo) -> int | None:
        threads = info.data.get("threads_per_worker", 1)
        if calls is not None and calls < threads:
            raise ValueError(f"must be {threads} or more, as THREADS_PER_WORKER is")
        return calls

    @field_validator("db_max_overflow")
    @classmethod
    def _check_pool(cls, overflow: int, info: ValidationInfo) -> int:
        size, threads = info.data.get("db_pool_size"), info.data.get("threads_per_worker")
        if size and threads and size + overflow < threads + _OWN_CONNECTIONS:
            raise ValueError(
                f"must be {threads + _OWN_CONNECTIONS - size} or more with this DB_POOL_SIZE:"
                f" {threads} calls and {_OWN_CONNECTIONS} threads of the service's own use"
                " connections at once"
            )
        return overflow

    @field_validator("otel_exporter_endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str | None) -> str | None:
        if endpoint and not _ENDPOINT.fullmatch(endpoint):
            raise ValueError("must be a URL such as http://localhost:4317 or https://host:4317")
        return endpoint

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        host, environment = info.data.get("db_host"), info.data.get("environment", "development")
        if url and host:
            raise ValueError("set either this or DB_HOST, not both")
        if url and _parsed(url) is None:
            raise ValueError("must be a URL such as postgresql://user:password@host/name")
        if environment != "development" and not (url or host):
            raise ValueError(f"must be set (or DB_HOST) in {environment}")
        return url

    @field_validator("database_direct_url")
    @classmethod
    def _check_direct_database(
        cls, url: SecretStr | None, info: ValidationInfo
    ) -> SecretStr | None:
        if url and _parsed(url) is None:
            raise ValueError("must be a URL such as postgresql://user:password@host/name")
        if url and not (info.data.get("database_url", True) or info.data.get("db_host")):
            raise ValueError("needs DATABASE_URL (or DB_HOST), which may lead to a pooler")
        return url

    @field_validator("secret_key", "secret_key_previous")
    @classmethod
    def _check_secret(cls, key: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        environment = info.data.get("environment", "development")
        if key is None and (info.field_name != "secret_key" or environment == "development"):
            return key
        if len(key or "") < _SECRET_KEY_CHARACTERS:
            least = f"must have {_SECRET_KEY_CHARACTERS} characters or more"
            if environment != "development":
                raise ValueError(f"{least} in {environment}")
            if info.data.get("auth_mode") == "jwt":
                raise ValueError(f"{least} with AUTH_MODE=jwt")
        return key

    @classmethod
    def load(cls) -> Settings:
        """Reads the settings. Raises: SettingsError."""
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError(_readable(error)) from None
        except UnicodeDecodeError:
            raise SettingsError([".env: must be UTF-8 text"]) from None

    @property
    def explicit_database_url(self) -> str | None:
        """The database that the settings name; None when the embedded one is meant."""
        if self.database_url:
            url = _parsed(self.database_url)
        elif self.db_host:
            url = URL.create(
                _DRIVER,
                username=self.db_user,
                password=self.db_password.get_secret_value() if self.db_password else None,
                host=self.db_host,
                port=self.db_port,
                database=self.db_name,
            )
        else:
            return None
        return url.render_as_string(hide_password=False) if url else None

    @property
    def direct_database_url(self) -> str | None:
        """PostgreSQL itself, where the explicit database is reached by way of a pooler."""
        url = _parsed(self.database_direct_url) if self.database_direct_url else None
        return url.render_as_string(hide_password=False) if url else None

    @property
    def database_connections(self) -> int:
        """How many connections the workers may open to PostgreSQL itself."""
        own = 1  # It listens.
        pool = 0 if self.direct_database_url else self.pool_size + self.db_max_overflow
        return self.worker_count * (pool + own)

    @property
    def worker_count(self) -> int:
        """How many processes serve: one in development, else one for each usable core."""
        return self.workers or (1 if self.environment == "development" else usable_cores())

    @property
    def algorithms(self) -> frozenset[str]:
        """The algorithms by which a token may be signed, by the names that PyJWT gives them."""
        return frozenset(EDDSA if it == ED25519 else it for it in _listed(self.algorithm))

    @property
    def call_limit(self) -> int:
        """How many calls a process has in flight: at work, or waiting for a thread."""
        return self.max_concurrent_calls or 16 * self.threads_per_worker

    @property
    def max_queued_bytes(self) -> int:
        """The bytes of all requests in flight in a process; half of them of one caller."""
        largest = max(self.max_request_bytes, self.max_batch_request_bytes)
        return max(_QUEUED_BYTES, 4 * largest)

    @property
    def calls_per_second(self) -> int | None:
        """How many calls a second a process takes of a principal; None for any number.

        Where nobody says who he is, all are one principal: by default it has no limit of its own.
        """
        is_unlimited = self.environment == "development" or self.auth_mode == "none"
        return self.rate_limit_per_second or (None if is_unlimited else 500)

    @property
    def watches_per_principal(self) -> int:
        """How many watches a process keeps open for a principal; like the calls, all for one."""
        default = self.max_watches_per_worker if self.auth_mode == "none" else 100
        return self.max_watches_per_principal or default

    @property
    def pool_size(self) -> int:
        """Connections that a process keeps: whoever needs one finds one."""
        return self.db_pool_size or self.threads_per_worker + _OWN_CONNECTIONS

    @property
    def drain_delay_seconds(self) -> float:
        """How long to go on serving after NOT_SERVING, so that balancers can turn away."""
        if self.shutdown_delay_seconds is not None:
            return self.shutdown_delay_seconds
        return 0 if self.environment == "development" else 5

    @property
    def reflection_for(self) -> Literal["on", "authenticated", "off"]:
        """Who may ask for the contract: all, those who say who they are, or nobody."""
        return self.reflection or ("on" if self.environment == "development" else "authenticated")

    @property
    def metrics_on(self) -> str:
        """The host of the metrics port, which tells anybody: in development no other machine."""
        local = "127.0.0.1" if self.environment == "development" else self.grpc_host
        return self.metrics_host or local

    def key(self) -> bytes:
        """The secret that keys are derived from; in development made once, kept in DATA_DIR.

        Raises: SettingsError, when DATA_DIR cannot be written, or the key is not ours alone.
        """
        if self.secret_key is not None:
            return self.secret_key.get_secret_value().encode()
        try:
            return self._own_key()
        except OSError as error:
            raise SettingsError([f"DATA_DIR: cannot be used: {error}"]) from error

    def accepted_keys(self) -> list[bytes]:
        """The secrets that tokens are taken by, the one that new ones are made with first.

        Raises: SettingsError, as `key`.
        """
        previous = self.secret_key_previous
        return [self.key(), *([previous.get_secret_value().encode()] if previous else [])]

    def _own_key(self) -> bytes:
        path = self.data_dir / "secret_key"
        if not path.exists():
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.data_dir) as file:
                file.write(secrets.token_urlsafe(_SECRET_KEY_CHARACTERS))
                file.flush()
                with suppress(FileExistsError):  # The first key stays, and nobody reads half of it.
                    os.link(file.name, path)
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SettingsError(
                [f"DATA_DIR: others may use {path}: remove it, and a new one is made; or chmod 600"]
            )
        return path.read_bytes()


def _spellings(name: str) -> str:
    """How a name is written with the kind that it may be of."""
    kinds = ["uri"] if "://" in name else ["dns", "cn"]
    return " or ".join(f'"{kind}:{name}"' for kind in kinds)


def _listed(names: str) -> frozenset[str]:
    return frozenset(name.strip() for name in names.split(","))


def _parsed(secret: SecretStr) -> URL | None:
    """The URL as SQLAlchemy has it; also of several hosts, as libpq writes them: h1:5432,h2."""
    given = secret.get_secret_value()
    scheme, _, rest = given.partition("://")
    if scheme not in {"postgres", "postgresql", _DRIVER}:
        return None
    try:
        if "," in rest.partition("?")[0].rpartition("@")[2]:
            return _of_many_hosts(parse_dsn(f"postgresql://{rest}"))
        url = make_url(given)
        make_dsn(**dict.fromkeys(url.query, ""))  # Knows the options that libpq knows.
    except (ArgumentError, ValueError, ProgrammingError):
        return None
    if not (url.port is None or 0 < url.port <= _MAX_PORT):
        return None
    return url.set(drivername=_DRIVER)


def _of_many_hosts(parts: dict[str, str]) -> URL | None:
    hosts = parts["host"]
    parts.setdefault("port", "," * hosts.count(","))
    if not all(0 < int(port or 1) <= _MAX_PORT for port in parts["port"].split(",")):
        return None
    user, password, name = (parts.pop(it, None) for it in ("user", "password", "dbname"))
    return URL.create(_DRIVER, username=user, password=password, database=name, query=parts)


def _readable(error: ValidationError) -> list[str]:
    return sorted(_line(mistake) for mistake in error.errors(include_url=False))


def _line(mistake: ErrorDetails) -> str:
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        message = "there is no such setting; see .env.example"
    name = str(mistake["loc"][0]).upper()
    if name.endswith("_PORT") and _SERVICE_LINK.match(str(mistake["input"])):
        service = name.removesuffix("_PORT").lower()
        message = (
            f"is a link to a Service named {service!r}, which Kubernetes puts into the environment "
            "of its pods: set enableServiceLinks: false in the pod's spec, or this variable"
        )
    return f"{name}: {message}"


def usable_cores(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int:
    """The cores that this process may use: its affinity, within the CPU quota of its cgroup."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [math.ceil(quota) for quota in _cgroup_quotas(root, membership)]
    return max(1, min([cores or 1, *quotas]))


def _cgroup_quotas(root: Path, membership: Path) -> Iterator[float]:
    """Every quota that holds here, in cores: cgroup v2 `cpu.max`, or v1 `cpu.cfs_quota_us`."""
    limits = [[root / "cpu" / "cpu.cfs_quota_us", root / "cpu" / "cpu.cfs_period_us"]]
    with suppress(OSError):
        group = membership.read_text().rpartition("0::")[2].strip().strip("/")
        limits += [[root / level / "cpu.max"] for level in (Path(group), *Path(group).parents)]
    for files in limits:
        with suppress(OSError):
            quota, period = " ".join(file.read_text().strip() for file in files).split()
            if quota not in {"max", "-1"}:
                yield int(quota) / int(period)
