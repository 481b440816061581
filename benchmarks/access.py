"""Measure what authentication costs: the service's CPU per GetTask, by the kind of token.

    .venv/bin/python -m benchmarks.access

One service after another, in turns. "each new" has a token of its own for every call, more of them
than the service remembers. The ratio to "none" is the figure to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from sqlalchemy import make_url

from benchmarks.calls import PORT, Machine, fill, measure, running_service
from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_service_pb2 import GetTaskRequest, ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

NAMED = {"iss": "benchmark", "aud": "tasks"}
EACH_NEW = 6000

KEYS: dict[str, Any] = {
    "HS256": "a secret that is as long as it needs be",
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
MODES: dict[str, tuple[str, int]] = {
    "none": ("", 0),
    "HS256": ("HS256", 1),
    "RS256": ("RS256", 1),
    **{f"{algorithm}, each new": (algorithm, EACH_NEW) for algorithm in KEYS},
}


def key_set() -> str:
    """Return the public keys as a JWKS."""
    kinds: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    keys = [
        {**kind.to_jwk(KEYS[name].public_key(), as_dict=True), "kid": name, "alg": name}
        for name, kind in kinds.items()
    ]
    return json.dumps({"keys": keys})


def tokens(algorithm: str, count: int) -> list[str]:
    now = int(time.time())
    claims = {**NAMED, "sub": "benchmark", "scope": "tasks:read", "iat": now, "exp": now + 3600}
    headers = {} if algorithm == "HS256" else {"kid": algorithm}
    return [
        jwt.encode({**claims, "jti": str(n)}, KEYS[algorithm], algorithm, headers)
        for n in range(count)
    ]


async def service_cpu(machine: Machine, bearers: list[str], seconds: float) -> float:
    """Measure the service's CPU µs per GetTask, with one of these tokens each time."""
    metadata = cycle([(("authorization", f"Bearer {token}"),) for token in bearers] or [()])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{PORT}") as channel:
        await channel.channel_ready()
        stub: Any = TaskServiceStub(channel)
        page = await stub.ListTasks(ListTasksRequest(page_size=1000), metadata=next(metadata))
        ids = cycle([task.id for task in page.tasks])

        def call() -> Any:
            return stub.GetTask(GetTaskRequest(id=next(ids)), metadata=next(metadata))

        await measure(call, machine, seconds=1, in_flight=32)
        row = await measure(call, machine, seconds=seconds, in_flight=32)
        return float(row.split()[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    with TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        jwks = Path(folder) / "jwks.json"
        jwks.write_text(key_set())
        settings = {
            "SECRET_KEY": KEYS["HS256"],
            "ALGORITHM": ",".join(KEYS),
            "JWKS_URL": jwks.as_uri(),
            "JWT_ISSUER": NAMED["iss"],
            "JWT_AUDIENCE": NAMED["aud"],
        }
        schema.upgrade(postgres.url)
        fill(postgres.url, 10_000)
        url = make_url(postgres.url).render_as_string(hide_password=False)
        server = int((Path(folder) / "postgres/postmaster.pid").read_text().split()[0])
        for _ in range(arguments.rounds):
            for mode, (algorithm, count) in MODES.items():
                own = settings | {"AUTH_MODE": "jwt" if algorithm else "none"}
                with running_service(url, 1, own) as service:
                    machine = Machine(service.pid, server)
                    bearers = tokens(algorithm, count)
                    found[mode].append(
                        asyncio.run(service_cpu(machine, bearers, arguments.seconds))
                    )
    none = statistics.median(found["none"])
    print(f"{'':24}{'service µs':>11} {'ratio':>7}")
    for mode, figures in found.items():
        median = statistics.median(figures)
        print(f"{mode:24}{median:11.0f} {median / none:7.2f}")


if __name__ == "__main__":
    main()
