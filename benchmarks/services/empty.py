"""Serve an empty method with plain grpcio: the least that a call costs."""

from __future__ import annotations

from benchmarks.services.plain import serve


def main() -> None:
    serve("Empty", {"Call": lambda _request: b""})


if __name__ == "__main__":
    main()
