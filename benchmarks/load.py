"""Load a service with h2load, of Debian's nghttp2-client: HTTP/2 for gRPC, HTTP/1.1 for JSON."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.requests import Request

_REQUESTS = re.compile(
    r"requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored"
)
_FINISHED = re.compile(r"finished in ([\d.]+)(m?s)")
_DATA = re.compile(r"traffic:.*\((\d+)\) data")
# Answers differ by a few bytes in their times; a failed gRPC call has status 200 and no data.
_LEAST_DATA = 0.9


class LoadError(Exception):
    """Some calls failed, so that the figures of the others say nothing."""


@dataclass(frozen=True)
class Load:
    """What a load measured."""

    calls: int
    seconds: float
    p50_ms: float
    p99_ms: float


def require_h2load() -> None:
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is needed: apt-get install nghttp2-client")


def send_load(
    address: str,
    requests: Sequence[Request],
    *,
    connections: int,
    seconds: float | None = None,
    calls: int | None = None,
) -> Load:
    """Send requests over connections with one call in flight each, for a time or a number of calls.

    Raises: LoadError.
    """
    bound = (
        ["-D", f"{seconds * 1000:.0f}ms"] if seconds else ["-n", str((calls or 1) // len(requests))]
    )
    share = [f"-c{connections // len(requests)}", *bound]
    with TemporaryDirectory() as name:
        started = [
            _start(Path(name) / str(number), address, request, share)
            for number, request in enumerate(requests)
        ]
        outputs = [process.communicate()[0] for process in started]
        for request, output in zip(requests, outputs, strict=True):
            _check(output, request.framed_bytes(request.send(address)))
        latencies = sorted(
            int(line.rsplit("\t", 1)[1])
            for log in Path(name).glob("*.log")
            for line in log.read_text().splitlines()
        )
    if not latencies:
        raise LoadError("no call was answered in time")
    return Load(
        calls=len(latencies),
        seconds=max(_seconds(output) for output in outputs),
        p50_ms=latencies[len(latencies) // 2] / 1000,
        p99_ms=latencies[len(latencies) * 99 // 100] / 1000,
    )


def _start(
    stem: Path, address: str, request: Request, bounds: Sequence[str]
) -> subprocess.Popen[str]:
    headers = [f"-H{name}: {value}" for name, value in request.headers.items()]
    body = []
    if request.body is not None:
        stem.write_bytes(request.body)
        body = ["-d", str(stem)]
    protocol = [] if request.is_grpc else ["--h1"]
    command = ["h2load", "-t1", "-m1", *bounds, *protocol, *headers, *body]
    command += [f"--log-file={stem}.log", f"http://{address}{request.path}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _check(output: str, answer_bytes: int) -> None:
    requests, data = _REQUESTS.search(output), _DATA.search(output)
    if requests is None or data is None:
        raise LoadError(output)
    succeeded, failed, errored = map(int, requests.groups())
    if failed or errored or int(data[1]) < _LEAST_DATA * succeeded * answer_bytes:
        raise LoadError(output)


def _seconds(output: str) -> float:
    found = _FINISHED.search(output)
    if found is None:
        raise LoadError(output)
    return float(found[1]) * (0.001 if found[2] == "ms" else 1)
