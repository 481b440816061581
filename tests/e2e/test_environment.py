"""Environments: variables that a platform sets, and folders that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.service import ServiceProcess, await_ready, run_command

Start = Callable[..., ServiceProcess]

SERVED = {"ENVIRONMENT": "staging", "WORKERS": "2", "METRICS_PORT": "0"}

# --- OpenTelemetry --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_jaeger_remote"},
            "OTEL_TRACES_SAMPLER: 'parentbased_jaeger_remote' is not supported",
        ),
        ({"OTEL_TRACES_SAMPLER_ARG": "endpoint=http://a:1"}, "OTEL_TRACES_SAMPLER_ARG: it is not"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "thrift"}, "the protocol 'thrift' is not supported"),
    ],
)
def test_a_variable_that_is_ignored_is_warned_of(
    own_database_url: str, start_service: Start, variables: dict[str, str], line: str
) -> None:
    service = start_service(DATABASE_URL=own_database_url, **variables)
    await_ready(service.channel())
    assert line in service.log


# --- Kubernetes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("service", ["db", "grpc", "health", "metrics"])
def test_a_link_to_a_service_of_kubernetes_is_explained(
    tmp_path: Path, service: str, scheme: str
) -> None:
    name = f"{service.upper()}_PORT"
    done = run_command(tmp_path, "serve", program=(), **{name: f"{scheme}://10.0.0.5:5432"})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{name}: is a link to a Service named '{service}'")
    assert "enableServiceLinks: false" in line
    assert "10.0.0.5" not in line


# --- File systems ---------------------------------------------------------------------------------

READ_ONLY = """
unset COVERAGE_PROCESS_START COVERAGE_PROCESS_CONFIG  # Coverage would write, too, and complain.
for folder in / /tmp /var/tmp {more}; do
    mount --rbind $folder $folder && mount -o remount,bind,ro $folder || exit 99
done
exec "$@"
"""


def reading_only(*more: str) -> tuple[str, ...]:
    """What a command is started by, so that it can write to none of these folders, nor to /tmp."""
    script = READ_ONLY.format(more=" ".join(more))
    root = () if os.geteuid() == 0 else ("--map-root-user",)
    return ("unshare", *root, "--mount", "sh", "-c", script, "sh")


@pytest.fixture
def read_only_service(own_database_url: str, start_service: Start) -> Callable[..., ServiceProcess]:
    def start(*more: str, **settings: str) -> ServiceProcess:
        return start_service(
            program=reading_only(*more), DATABASE_URL=own_database_url, **SERVED | settings
        )

    return start


def test_a_service_that_can_write_nowhere_serves(
    read_only_service: Callable[..., ServiceProcess],
) -> None:
    service = read_only_service("/dev/shm", METRICS_PORT="")  # noqa: S108
    await_ready(service.channel())


def test_scraped_workers_use_shared_memory_without_a_writable_folder(
    read_only_service: Callable[..., ServiceProcess],
) -> None:
    service = read_only_service()
    await_ready(service.channel())


def test_scraped_workers_without_any_writable_folder_say_so(
    read_only_service: Callable[..., ServiceProcess],
) -> None:
    service = read_only_service("/dev/shm")  # noqa: S108
    assert service.wait() == 2
    assert service.lines[-1] == (
        "TMPDIR: must be a folder that can be written, for METRICS_PORT with WORKERS > 1\n"
    )
    assert "Traceback" not in service.log


def test_a_tmpdir_that_cannot_be_written_is_passed_over(
    own_database_url: str, start_service: Start
) -> None:
    service = start_service(DATABASE_URL=own_database_url, TMPDIR="/proc", **SERVED)
    await_ready(service.channel())


def test_an_embedded_database_without_a_writable_folder_is_refused(
    tmp_path: Path,
) -> None:
    program = (*reading_only("/dev/shm"), sys.executable, "-m", "server")  # noqa: S108
    done = run_command(tmp_path, "serve", program=program)
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stdout + done.stderr
    assert "DATA_DIR" in done.stdout + done.stderr


def test_an_embedded_database_without_a_folder_for_its_socket_is_refused(tmp_path: Path) -> None:
    """Shared memory is writable and has the data; /tmp, for the socket, is not."""
    program = (*reading_only(), sys.executable, "-m", "server")
    with TemporaryDirectory(dir="/dev/shm") as folder:
        Path(folder).chmod(0o711)
        done = run_command(tmp_path, "serve", program=program, DATA_DIR=f"{folder}/data")
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stdout + done.stderr
    assert "task-service-" in done.stdout + done.stderr


def test_mounts_can_be_made_read_only_here() -> None:
    """The tests above depend on this."""
    command = [*reading_only(), "touch", "/var/tmp/written"]  # noqa: S108
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "Read-only file system" in done.stderr) == (1, True)
