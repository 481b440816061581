"""What the service can be told, and what it says to those who tell it wrongly."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from server.settings import Settings, SettingsError, usable_cores

PROJECT = Path(__file__).parents[1]

SECRET = "correct-horse-battery-staple-2026"  # noqa: S105
URL = f"postgresql://someone:{SECRET}@db.example/tasks"
PLAIN = {"TLS_TERMINATED_UPSTREAM": "true"}
SAFE = {
    "ENVIRONMENT": "production",
    "DATABASE_URL": URL,
    "SECRET_KEY": SECRET,
    "AUTH_MODE": "none",
} | PLAIN

NO_PLAINTEXT = (
    "must be set in production; or TLS_TERMINATED_UPSTREAM, "
    "when a proxy or a mesh in front of the service does TLS"
)

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads the settings in a folder of the test's own, from this .env and these variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")

    def load(dotenv: str | bytes = "", **environment: str) -> Settings:
        (tmp_path / ".env").write_bytes(dotenv if isinstance(dotenv, bytes) else dotenv.encode())
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return Settings.load()

    return load


def mistakes(load: Load, dotenv: str | bytes = "", **environment: str) -> list[str]:
    """The lines with which the settings are refused."""
    with pytest.raises(SettingsError) as raised:
        load(dotenv, **environment)
    return raised.value.lines


# --- Reading --------------------------------------------------------------------------------------


def test_everything_has_a_default(load: Load) -> None:
    """`make run` works in a fresh checkout, where nobody has set anything."""
    settings = load()
    assert (settings.environment, settings.grpc_port, settings.explicit_database_url) == (
        "development",
        50051,
        None,
    )


def test_a_setting_is_read_from_the_environment(load: Load) -> None:
    assert load(GRPC_PORT="1234").grpc_port == 1234


def test_a_setting_is_read_from_dotenv(load: Load) -> None:
    assert load("GRPC_PORT=1234\n").grpc_port == 1234


def test_the_environment_wins_over_dotenv(load: Load) -> None:
    assert load("GRPC_PORT=1234\n", GRPC_PORT="4321").grpc_port == 4321


def test_dotenv_is_found_in_the_working_directory(tmp_path: Path) -> None:
    """In a process of its own: the tests' own has stopped looking for the file."""
    (tmp_path / ".env").write_text("APP_NAME=from-dotenv\n")
    script = "from server.settings import Settings; print(Settings.load().app_name)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "from-dotenv\n"


def test_an_empty_value_means_not_set(load: Load) -> None:
    """Kubernetes and Compose pass empty strings for what an operator left out."""
    loaded = load("DB_HOST=\n", WORKERS="", DATABASE_URL="")
    assert (loaded.db_host, loaded.workers, loaded.database_url) == (None, None, None)


@pytest.mark.parametrize(
    ("environment", "settings", "seconds"),
    [
        ("development", {}, 0),
        ("production", {}, 5),
        ("production", {"SHUTDOWN_DELAY_SECONDS": "0"}, 0),
    ],
)
def test_balancers_get_time_to_turn_away_in_production(
    load: Load, environment: str, settings: dict[str, str], seconds: float
) -> None:
    loaded = load(**SAFE | {"ENVIRONMENT": environment} | settings)
    assert loaded.drain_delay_seconds == seconds


@pytest.mark.parametrize(
    ("settings", "workers"),
    [({}, 1), (SAFE, usable_cores()), ({"WORKERS": "7"}, 7), (SAFE | {"WORKERS": "7"}, 7)],
)
def test_one_process_serves_in_development_and_one_for_each_core_elsewhere(
    load: Load, settings: dict[str, str], workers: int
) -> None:
    assert load(**settings).worker_count == workers


def test_settings_do_not_change(load: Load) -> None:
    with pytest.raises(ValidationError):
        load().grpc_port = 1  # type: ignore[misc]


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ENVIRONMENT", "prod", "Input should be 'development', 'staging' or 'production'"),
        ("LOG_LEVEL", "loud", "Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("DEBUG", "perhaps", "Input should be a valid boolean, unable to interpret input"),
        ("GRPC_PORT", "65536", "Input should be less than or equal to 65535"),
        ("GRPC_PORT", "-1", "Input should be greater than or equal to 0"),
        ("WORKERS", "0", "Input should be greater than or equal to 1"),
        ("THREADS_PER_WORKER", "0", "Input should be greater than or equal to 1"),
        ("SHUTDOWN_DELAY_SECONDS", "-1", "Input should be greater than or equal to 0"),
        ("SHUTDOWN_GRACE_SECONDS", "nan", "Input should be less than or equal to 3600"),
        ("HEALTH_CHECK_INTERVAL_SECONDS", "0", "Input should be greater than 0"),
        ("DB_PORT", "0", "Input should be greater than or equal to 1"),
        ("DB_POOL_SIZE", "0", "Input should be greater than or equal to 1"),
        ("DB_POOL_RECYCLE_SECONDS", "inf", "Input should be less than or equal to 31536000"),
        # PostgreSQL counts milliseconds, and takes 0 of them for no limit at all.
        (
            "DB_STATEMENT_TIMEOUT_SECONDS",
            "0.0009",
            "Input should be greater than or equal to 0.001",
        ),
        ("MAX_CONNECTIONS_PER_WORKER", "0", "Input should be greater than or equal to 1"),
        ("MAX_STREAMS_PER_CONNECTION", "0", "Input should be greater than or equal to 1"),
        # To gRPC's core 0 milliseconds mean no limit, or at once: never what was wanted.
        ("HANDSHAKE_SECONDS", "0", "Input should be greater than or equal to 0.1"),
        ("CONNECTION_IDLE_SECONDS", "inf", "Input should be less than or equal to 86400"),
        ("CONNECTION_AGE_SECONDS", "nan", "Input should be less than or equal to 86400"),
        ("CONNECTION_AGE_GRACE_SECONDS", "0", "Input should be greater than or equal to 0.1"),
        ("MIN_PING_INTERVAL_SECONDS", "0", "Input should be greater than or equal to 0.1"),
        # A request of grpc's own clients, with a token in it, has about two thousand.
        ("MAX_METADATA_BYTES", "4095", "Input should be greater than or equal to 4096"),
        ("MAX_REQUEST_BYTES", "16383", "Input should be greater than or equal to 16384"),
        (
            "MAX_BATCH_REQUEST_BYTES",
            "16777217",
            "Input should be less than or equal to 16777216",
        ),
        # Less than a few answers would be none of any size.
        ("MAX_UNREAD_BYTES", "16777215", "Input should be greater than or equal to 16777216"),
        ("REFLECTION", "yes", "Input should be 'on', 'authenticated' or 'off'"),
        ("MAX_CONCURRENT_CALLS", "3", "must be 4 or more, as THREADS_PER_WORKER is"),
        ("REQUEST_ID_RETENTION_HOURS", "1e300", "Input should be less than or equal to 8760"),
    ],
)
def test_a_value_out_of_bounds_is_refused(load: Load, name: str, value: str, message: str) -> None:
    assert mistakes(load, **{name: value}) == [f"{name}: {message}"]


def test_an_unknown_name_in_dotenv_is_a_mistake(load: Load) -> None:
    """A misspelt setting would otherwise keep its default without a word."""
    assert mistakes(load, "GRPC_PROT=1\n") == [
        "GRPC_PROT: there is no such setting; see .env.example"
    ]


def test_an_unknown_name_in_the_environment_is_none_of_our_business(load: Load) -> None:
    assert load(GRPC_PROT="1") == load()


def test_dotenv_must_be_text(load: Load) -> None:
    assert mistakes(load, b"APP_NAME=\xff\n") == [".env: must be UTF-8 text"]


def test_all_mistakes_are_told_at_once(load: Load) -> None:
    """Also those that take two settings to see: nobody should have to start the service thrice."""
    assert mistakes(load, "GRPC_PROT=1\nWORKERS=0\n", ENVIRONMENT="production", DEBUG="x") == [
        "AUTH_MODE: must be set in production, even if to none",
        "DATABASE_URL: must be set (or DB_HOST) in production",
        "DEBUG: Input should be a valid boolean, unable to interpret input",
        "GRPC_PROT: there is no such setting; see .env.example",
        "SECRET_KEY: must have 32 characters or more in production",
        f"TLS_CERT_FILE: {NO_PLAINTEXT}",
        "WORKERS: Input should be greater than or equal to 1",
    ]


def test_the_error_reads_as_its_lines(load: Load) -> None:
    with pytest.raises(SettingsError, match=r"\ADEBUG: [^\n]+\nWORKERS: [^\n]+\Z"):
        load(WORKERS="0", DEBUG="x")


# --- Secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("show", [repr, str, Settings.model_dump_json])
@pytest.mark.parametrize(
    "settings",
    [
        {"DATABASE_URL": URL},
        {"SECRET_KEY": SECRET},
        {"SECRET_KEY_PREVIOUS": SECRET},
        {"DB_HOST": "db.example", "DB_PASSWORD": SECRET},
    ],
    ids=lambda settings: list(settings)[-1],
)
def test_secrets_are_not_shown(
    load: Load, settings: dict[str, str], show: Callable[[Settings], str]
) -> None:
    """Settings are logged, and end up in tracebacks."""
    assert SECRET not in show(load(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"DATABASE_URL": f"mysql://someone:{SECRET}@db.example/tasks"},
        {"DATABASE_URL": f"postgresql://someone:{SECRET}@db.example:port/tasks"},
        {"DATABASE_URL": SECRET},
        {"DATABASE_URL": URL, "DB_HOST": "db.example"},
        {"DATABASE_URL": URL, "SECRET_KEY": SECRET[:31], "ENVIRONMENT": "staging"},
        {"DB_PASSWORD": SECRET, "SECRET_KEY": SECRET, "WORKERS": SECRET},
        {"ENVIRONMENT": "staging", "SECRET_KEY_PREVIOUS": SECRET[:31]},
    ],
)
@pytest.mark.parametrize("construct", [Settings, Settings.load])
def test_errors_do_not_show_secrets(
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    construct: Callable[[], Settings],
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValidationError, SettingsError)) as raised:
        construct()
    assert SECRET[:31] not in f"{raised.value} {raised.value!r} {raised.value.__cause__!r}"


def test_the_value_of_an_unknown_name_is_not_shown(load: Load) -> None:
    """It may well be a secret under a misspelt name."""
    assert SECRET not in "\n".join(mistakes(load, f"SECRET_KEYY={SECRET}\n"))


@pytest.mark.parametrize("environment", ["staging", "production"])
@pytest.mark.parametrize("key", ["", SECRET[:31]])
def test_an_environment_that_matters_needs_a_long_secret_key(
    load: Load, environment: str, key: str
) -> None:
    assert mistakes(load, **SAFE | {"ENVIRONMENT": environment, "SECRET_KEY": key}) == [
        f"SECRET_KEY: must have 32 characters or more in {environment}"
    ]


@pytest.mark.parametrize("settings", [SAFE, {"AUTH_MODE": "jwt", "SECRET_KEY": SECRET}])
def test_a_key_from_before_is_as_long_as_the_one_that_follows(
    load: Load, settings: dict[str, str]
) -> None:
    """It still opens tokens, and verifies those that it has signed."""
    (line,) = mistakes(load, **settings | {"SECRET_KEY_PREVIOUS": SECRET[:31]})
    assert line.startswith("SECRET_KEY_PREVIOUS: must have 32 characters or more ")


def test_no_key_from_before_is_needed(load: Load) -> None:
    assert load(**SAFE, SECRET_KEY_PREVIOUS="").accepted_keys() == [SECRET.encode()]


def test_a_secret_key_of_32_characters_is_long_enough(load: Load) -> None:
    assert load(**SAFE | {"SECRET_KEY": SECRET[:32]}).key() == SECRET[:32].encode()


def test_development_makes_a_key_and_keeps_it(tmp_path: Path) -> None:
    """Page tokens stay good when a developer restarts the service."""
    first = Settings(data_dir=tmp_path / "data").key()
    assert len(first) >= 32
    assert Settings(data_dir=tmp_path / "data").key() == first


def test_every_checkout_makes_a_key_of_its_own(tmp_path: Path) -> None:
    keys = {Settings(data_dir=tmp_path / name).key() for name in ("one", "other")}
    assert len(keys) == 2


def test_the_key_is_for_its_owner_only(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    settings.key()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in sorted(tmp_path.rglob("*"))]
    assert modes == [0o700, 0o600]


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_the_key_is_for_its_owner_only_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Settings(data_dir=tmp_path / "data").key()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in sorted(tmp_path.rglob("*"))]
    assert all(mode & 0o077 == 0 for mode in modes), modes
    assert len(modes) == 2


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    """A copy of DATA_DIR, or one made by hand."""
    settings = Settings(data_dir=tmp_path)
    settings.key()
    path = tmp_path / "secret_key"
    path.chmod(mode)
    with pytest.raises(SettingsError) as refused:
        settings.key()
    assert refused.value.lines == [
        f"DATA_DIR: others may use {path}: remove it, and a new one is made; or chmod 600"
    ]
    path.chmod(0o600)
    assert settings.key()


def test_whoever_asks_at_the_same_time_gets_the_same_key(tmp_path: Path) -> None:
    """Never an empty one, from a file that another has just made and not written yet."""
    for number in range(50):
        settings = Settings(data_dir=tmp_path / str(number))
        barrier = Barrier(4)

        def key(settings: Settings = settings, barrier: Barrier = barrier) -> bytes:
            barrier.wait()
            return settings.key()

        with ThreadPoolExecutor(4) as threads:
            keys = {future.result() for future in [threads.submit(key) for _ in range(4)]}
        assert len(keys) == 1


# --- Who may call ---------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_an_environment_that_matters_says_who_may_call(load: Load, environment: str) -> None:
    """Even that everybody may: nobody should find the doors open because he forgot a line."""
    assert mistakes(load, **SAFE | {"ENVIRONMENT": environment, "AUTH_MODE": ""}) == [
        f"AUTH_MODE: must be set in {environment}, even if to none"
    ]


def test_in_development_everybody_may_call(load: Load) -> None:
    assert load().auth_mode == "none"


def test_certificates_name_callers_only_if_they_are_verified(load: Load) -> None:
    assert mistakes(load, AUTH_MODE="mtls") == ["AUTH_MODE: mtls needs TLS_CLIENT_CA_FILE"]


@pytest.mark.parametrize(
    "names", ["none", "HS256,none", "HS512", "hs256", "RS256 ES256", ",", "HS256,"]
)
def test_an_algorithm_that_is_not_taken_is_refused(load: Load, names: str) -> None:
    assert mistakes(load, ALGORITHM=names) == [
        "ALGORITHM: must be some of ES256, Ed25519, EdDSA, HS256, RS256"
    ]


NAMED = {"JWT_ISSUER": "https://issuer.example", "JWT_AUDIENCE": "tasks"}
JWKS_URL = "https://issuer.example/jwks.json"


def test_algorithms_stand_with_commas_between(load: Load) -> None:
    settings = load(AUTH_MODE="jwt", ALGORITHM="HS256, EdDSA", JWKS_URL=JWKS_URL, **NAMED)
    assert settings.algorithms == {"HS256", "EdDSA"}


@pytest.mark.parametrize(
    "settings", [{"ALGORITHM": "RS256"}, {"JWKS_URL": JWKS_URL, **NAMED}], ids=["no keys", "no use"]
)
def test_public_keys_and_their_algorithms_need_each_other(
    load: Load, settings: dict[str, str]
) -> None:
    """Whoever names a JWKS and forgets ALGORITHM would still let SECRET_KEY's tokens in, alone."""
    assert mistakes(load, AUTH_MODE="jwt", **settings) == [
        "JWKS_URL: is for RS256, ES256 and EdDSA, and they need it (or JWKS_FILE)"
    ]


@pytest.mark.parametrize("missing", NAMED)
def test_with_a_jwks_the_issuer_and_the_audience_are_named(load: Load, missing: str) -> None:
    """An identity provider signs tokens for many services with the same keys."""
    settings = {"AUTH_MODE": "jwt", "ALGORITHM": "RS256", "JWKS_URL": JWKS_URL, **NAMED}
    assert mistakes(load, **settings | {missing: ""}) == [
        f"{missing}: must be set with a JWKS: its issuer has tokens for others too"
    ]


def test_a_jwks_named_in_both_ways_is_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "jwks").touch()
    assert mistakes(load, JWKS_FILE=str(tmp_path / "jwks"), JWKS_URL=JWKS_URL, **NAMED) == [
        "JWKS_URL: set either this or JWKS_FILE, not both"
    ]


def test_a_jwks_file_exists(load: Load) -> None:
    assert mistakes(load, JWKS_FILE="none") == ["JWKS_FILE: Path does not point to a file"]


@pytest.mark.parametrize("url", ["file:///etc/keys", "issuer", "https://me:secret@host/", "https:"])
def test_what_is_no_url_of_a_jwks_is_refused(load: Load, url: str) -> None:
    assert mistakes(load, JWKS_URL=url, **NAMED) == [
        "JWKS_URL: must be a URL such as https://host/.well-known/jwks.json"
    ]


def test_in_production_keys_come_over_tls(load: Load) -> None:
    url = {"JWKS_URL": JWKS_URL.replace("https", "http"), **NAMED}
    assert load(**url)
    assert mistakes(load, **SAFE | url) == [
        "JWKS_URL: must be https in production: whoever gives the keys gives the tokens"
    ]


def test_tokens_are_not_signed_with_a_short_secret(load: Load) -> None:
    """RFC 7518, 3.2: a key as long as the hash, at least."""
    assert mistakes(load, AUTH_MODE="jwt", SECRET_KEY=SECRET[:31]) == [
        "SECRET_KEY: must have 32 characters or more with AUTH_MODE=jwt"
    ]


def test_what_certificates_may_do_is_json(load: Load) -> None:
    settings = load(MTLS_SCOPES='{"uri:spiffe://x/bill": ["tasks:read", "tasks:write"], "*": []}')
    assert settings.mtls_scopes == {
        "uri:spiffe://x/bill": {"tasks:read", "tasks:write"},
        "*": frozenset(),
    }


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        (
            "spiffe://x/billing",
            '"spiffe://x/billing" does not say which kind of name it is; '
            'write "uri:spiffe://x/billing"',
        ),
        (
            "billing.example",
            '"billing.example" does not say which kind of name it is; '
            'write "dns:billing.example" or "cn:billing.example"',
        ),
        ("cn:", "no certificate is taken by the name 'cn:': the name is blank"),
        (
            "dns: a.example",
            "no certificate is taken by the name 'dns: a.example': "
            "the name begins or ends with white space",
        ),
    ],
)
def test_a_name_of_certificates_has_its_kind(load: Load, name: str, mistake: str) -> None:
    """Else a common name that somebody chose could be another's URI."""
    assert mistakes(load, MTLS_SCOPES=json.dumps({name: ["tasks:read"], "*": []})) == [
        f"MTLS_SCOPES: {mistake}"
    ]


@pytest.mark.parametrize("scopes", ["billing", '{"cn:x": ["x:read"]}', '{"cn:x": "tasks:read"}'])
def test_scopes_that_there_are_not_are_refused(load: Load, scopes: str) -> None:
    assert [line.partition(":")[0] for line in mistakes(load, MTLS_SCOPES=scopes)] == [
        "MTLS_SCOPES"
    ]


# --- The database ---------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_an_environment_that_matters_needs_a_database(load: Load, environment: str) -> None:
    """The embedded one would lose everything with the container."""
    assert mistakes(load, **SAFE | {"ENVIRONMENT": environment, "DATABASE_URL": ""}) == [
        f"DATABASE_URL: must be set (or DB_HOST) in {environment}"
    ]


@pytest.mark.parametrize("database", [{"DATABASE_URL": URL}, {"DB_HOST": "db.example"}])
def test_a_database_may_be_named_in_either_way(load: Load, database: dict[str, str]) -> None:
    loaded = load(**SAFE | {"DATABASE_URL": ""} | database)
    assert make_url(loaded.explicit_database_url or "").host == "db.example"


def test_a_database_named_in_both_ways_is_refused(load: Load) -> None:
    assert mistakes(load, DATABASE_URL=URL, DB_HOST="db.example") == [
        "DATABASE_URL: set either this or DB_HOST, not both"
    ]


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgresql_means_our_driver(load: Load, scheme: str) -> None:
    """Platforms hand out `postgres://`, which SQLAlchemy does not know."""
    url = load(DATABASE_URL=f"{scheme}://u:p@h:1/n?sslmode=require").explicit_database_url
    assert url == "postgresql+psycopg2://u:p@h:1/n?sslmode=require"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "mysql://u@h/n",
        "postgresql+asyncpg://u@h/n",
        "postgresql://u@h:port/n",
        "h/n",
        "postgresql://u@h:99999/n",
        "postgresql://u@h/n?sslmod=require",
    ],
)
def test_what_is_no_url_of_postgresql_is_refused(load: Load, url: str) -> None:
    assert mistakes(load, DATABASE_URL=url) == [
        "DATABASE_URL: must be a URL such as postgresql://user:password@host/name"
    ]


@pytest.mark.parametrize("password", ["p@ss:w/o?r#d", "100%", "%40", "ä €", '"\\', "+&="])
def test_a_password_survives_being_put_into_the_url(load: Load, password: str) -> None:
    loaded = load(
        DB_HOST="h", DB_PORT="1", DB_NAME="n", DB_USER="u@corp", DB_PASSWORD=password
    ).explicit_database_url
    url = make_url(loaded or "")
    assert (url.drivername, url.host, url.port, url.database) == (
        "postgresql+psycopg2",
        "h",
        1,
        "n",
    )
    assert (url.username, url.password) == ("u@corp", password)


def test_the_password_may_be_left_out(load: Load) -> None:
    """For the methods that need none: a socket's peer, a certificate, a .pgpass."""
    assert load(DB_HOST="h").explicit_database_url == "postgresql+psycopg2://tasks@h:5432/tasks"


# --- Telemetry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["HEALTH_PORT", "METRICS_PORT"])
def test_other_ports_are_off_unless_they_are_named(load: Load, setting: str) -> None:
    assert getattr(load(), setting.lower()) is None
    assert getattr(load(**{setting: "0"}), setting.lower()) == 0
    assert mistakes(load, **{setting: "65536"}) == [
        f"{setting}: Input should be less than or equal to 65535"
    ]


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, "127.0.0.1"),
        ({"GRPC_HOST": "10.0.0.1"}, "127.0.0.1"),
        ({"GRPC_HOST": "10.0.0.1", "METRICS_HOST": "::"}, "::"),
        (SAFE | {"GRPC_HOST": "10.0.0.1"}, "10.0.0.1"),
        (SAFE | {"GRPC_HOST": "10.0.0.1", "METRICS_HOST": "10.0.0.7"}, "10.0.0.7"),
    ],
)
def test_metrics_have_a_host_of_their_own(load: Load, settings: dict[str, str], host: str) -> None:
    """They tell anybody: in development nobody of another machine, unless it is said."""
    assert load(**settings).metrics_on == host


def test_channelz_needs_the_port_that_it_is_on(load: Load) -> None:
    assert mistakes(load, ADMIN_ENABLED="true") == [
        "ADMIN_ENABLED: needs HEALTH_PORT, the only port that has it"
    ]
    assert load(HEALTH_PORT="0").admin_enabled


@pytest.mark.parametrize("endpoint", ["https://[::1]:4317", "http://collector.example:4317/"])
def test_a_collector_is_named_by_host_and_port(load: Load, endpoint: str) -> None:
    assert load(OTEL_EXPORTER_ENDPOINT=endpoint).otel_exporter_endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:4317",
        "grpc://localhost:4317",
        "http://localhost",
        "http://localhost:4317/v1/traces",
        f"http://user:{SECRET}@localhost:4317",
    ],
)
def test_what_is_no_collector_is_refused_and_not_shown(load: Load, endpoint: str) -> None:
    assert mistakes(load, OTEL_EXPORTER_ENDPOINT=endpoint) == [
        "OTEL_EXPORTER_ENDPOINT: must be a URL such as http://localhost:4317 or https://host:4317"
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SLOW_CALL_SECONDS", "0", "Input should be greater than 0"),
        ("TASK_COUNT_INTERVAL_SECONDS", "0.5", "Input should be greater than or equal to 1"),
    ],
)
def test_a_value_of_telemetry_out_of_bounds_is_refused(
    load: Load, name: str, value: str, message: str
) -> None:
    assert mistakes(load, **{name: value}) == [f"{name}: {message}"]


# --- TLS ------------------------------------------------------------------------------------------


def test_production_is_not_in_plaintext_by_accident(load: Load) -> None:
    assert mistakes(load, **SAFE | {"TLS_TERMINATED_UPSTREAM": "false"}) == [
        f"TLS_CERT_FILE: {NO_PLAINTEXT}"
    ]


@pytest.mark.parametrize(
    "settings",
    [{"TLS_TERMINATED_UPSTREAM": "true"}, {"TLS_CERT_FILE": "c.pem", "TLS_KEY_FILE": "k.pem"}],
)
def test_production_takes_certificates_or_one_that_has_them(
    load: Load, settings: dict[str, str]
) -> None:
    load(**SAFE | {"TLS_TERMINATED_UPSTREAM": "false"} | settings)


@pytest.mark.parametrize("environment", ["development", "staging"])
def test_plaintext_is_for_tests(load: Load, environment: str) -> None:
    load(**SAFE | {"TLS_TERMINATED_UPSTREAM": "false", "ENVIRONMENT": environment})


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"TLS_CERT_FILE": "c.pem"}, "TLS_KEY_FILE: must be set together with TLS_CERT_FILE"),
        ({"TLS_KEY_FILE": "k.pem"}, "TLS_KEY_FILE: must be set together with TLS_CERT_FILE"),
        ({"TLS_CLIENT_CA_FILE": "ca.pem"}, "TLS_CLIENT_CA_FILE: needs TLS_CERT_FILE"),
    ],
)
def test_half_of_what_tls_needs_is_a_mistake(
    load: Load, settings: dict[str, str], mistake: str
) -> None:
    """A service that someone believes to be encrypted would not be."""
    assert mistakes(load, **settings) == [mistake]


@pytest.mark.parametrize(
    ("environment", "given", "meant"),
    [
        ("development", {}, "on"),
        ("staging", {}, "authenticated"),
        ("production", {}, "authenticated"),
        ("production", {"REFLECTION": "on"}, "on"),
        ("development", {"REFLECTION": "off"}, "off"),
    ],
)
def test_reflection_is_for_all_in_development_only(
    load: Load, environment: str, given: dict[str, str], meant: str
) -> None:
    loaded = load(**SAFE | {"ENVIRONMENT": environment} | given)
    assert loaded.reflection_for == meant


# --- Limits ---------------------------------------------------------------------------------------


def test_calls_in_flight_follow_from_threads(load: Load) -> None:
    assert load(THREADS_PER_WORKER="8").call_limit == 128
    assert load(MAX_CONCURRENT_CALLS="9").call_limit == 9


def test_a_call_that_gets_in_finds_a_connection(load: Load) -> None:
    """As many as calls have threads, and those that the service itself needs."""
    assert load(THREADS_PER_WORKER="64").pool_size == 73


@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({"DB_POOL_SIZE": "5", "DB_MAX_OVERFLOW": "0"}, 8),
        ({"DB_POOL_SIZE": "2"}, 11),
        ({"DB_POOL_SIZE": "20", "THREADS_PER_WORKER": "22"}, 11),
    ],
)
def test_a_pool_that_is_too_small_is_refused(
    load: Load, environment: dict[str, str], missing: int
) -> None:
    (line,) = mistakes(load, **environment)
    assert line.startswith(f"DB_MAX_OVERFLOW: must be {missing} or more with this DB_POOL_SIZE: ")


def test_a_principal_has_a_rate_but_in_development(load: Load) -> None:
    assert load(AUTH_MODE="jwt").calls_per_second is None
    assert load(**SAFE | {"AUTH_MODE": "jwt"}).calls_per_second == 500
    assert load(RATE_LIMIT_PER_SECOND="7").calls_per_second == 7


def test_what_all_callers_share_has_no_limit_unless_it_is_set(load: Load) -> None:
    """With AUTH_MODE=none they are one principal."""
    assert load(**SAFE | {"AUTH_MODE": "jwt"}).watches_per_principal == 100
    assert load(**SAFE).calls_per_second is None
    assert load(**SAFE, RATE_LIMIT_PER_SECOND="7").calls_per_second == 7
    assert load(**SAFE, MAX_WATCHES_PER_WORKER="300").watches_per_principal == 300
    assert load(**SAFE, MAX_WATCHES_PER_PRINCIPAL="7").watches_per_principal == 7


# --- .env.example ---------------------------------------------------------------------------------


def test_the_example_names_every_setting_once() -> None:
    example = (PROJECT / ".env.example").read_text()
    names = re.findall(r"^(?:# ?)?([A-Z][A-Z_]*)=", example, re.MULTILINE)
    assert sorted(names) == sorted(name.upper() for name in Settings.model_fields)


def test_the_example_shows_the_defaults(load: Load) -> None:
    assert load((PROJECT / ".env.example").read_bytes()) == Settings(_env_file=None)


# --- Cores ----------------------------------------------------------------------------------------


@pytest.fixture
def cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Counts the cores of a process with an affinity of 8, in a cgroup of these files."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))

    def cores(files: dict[str, str], membership: str | None = "0::/\n") -> int:
        for name, content in files.items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(content)
        if membership is not None:
            (tmp_path / "membership").write_text(membership)
        return usable_cores(tmp_path / "cgroup", tmp_path / "membership")

    return cores


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        pytest.param({}, None, 8, id="no cgroups: the affinity"),
        pytest.param({"cpu.max": "max 100000\n"}, "0::/\n", 8, id="v2, no quota"),
        pytest.param({"cpu.max": "150000 100000\n"}, "0::/\n", 2, id="v2, rounded up"),
        pytest.param({"cpu.max": "10000 100000\n"}, "0::/\n", 1, id="v2, less than one core"),
        pytest.param({"cpu.max": "1600000 100000\n"}, "0::/\n", 8, id="v2, more than there are"),
        pytest.param({"a/b/cpu.max": "300000 100000\n"}, "0::/a/b\n", 3, id="v2, own group"),
        pytest.param(
            {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"},
            "0::/a/b\n",
            4,
            id="v2, the quota of the group around",
        ),
        pytest.param(
            {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "200000 100000\n"},
            "0::/a/b\n",
            2,
            id="v2, the smallest quota of nested groups",
        ),
        pytest.param({"c/cpu.max": "100000 100000\n"}, "0::/a/b\n", 8, id="v2, a stranger's group"),
        pytest.param({"cpu.max": "200000 100000\n"}, "0::/gone\n", 2, id="v2, group not mounted"),
        pytest.param(
            {"a/cpu.max": "200000 100000\n"}, "1:name=systemd:/x\n0::/a\n", 2, id="hybrid"
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/\n1:name=systemd:/\n",
            2,
            id="v1",
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/\n",
            8,
            id="v1, no quota",
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "150000\n"}, "4:cpu,cpuacct:/\n", 8, id="v1, no period"
        ),
    ],
)
def test_a_quota_of_the_cgroup_limits_the_cores(
    cores: Callable[..., int], files: dict[str, str], membership: str | None, expected: int
) -> None:
    """A container sees every core of its node, and may use what its quota gives."""
    assert cores(files, membership) == expected


def test_the_cores_of_this_very_machine_can_be_counted() -> None:
    assert usable_cores() >= 1
