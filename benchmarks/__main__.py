"""The commands of the benchmarks: see `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks import client, guard, plans
from benchmarks.load import require_h2load
from benchmarks.plots import draw_plots
from benchmarks.report import write_markdown
from benchmarks.results import FOLDER, Results


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.command != "client":
        require_h2load()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Ends the services as well.
    FOLDER.mkdir(exist_ok=True)
    pace = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    match arguments.command:
        case "quick":
            _write(plans.quick(**pace, baseline=arguments.baseline), "quick")
        case "rest":
            _write(plans.by_rest(**pace), "rest")
        case "full":
            results = plans.full(**pace)
            _write(results, "full", draw_plots(results, FOLDER))
        case "python":
            _write(plans.on_pythons(arguments.versions, **pace), "python")
        case "client":
            client.check(arguments.rounds)
        case "guard":
            guard.renew() if arguments.renew else guard.check()


def _write(results: Results, name: str, plots: list[str] | None = None) -> None:
    results.write_json(FOLDER / f"{name}.json")
    page = FOLDER / f"{name}.md"
    write_markdown(results, page, plots or [])
    print(page.read_text())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each call in each round")
    commands = parser.add_subparsers(dest="command", required=True)
    quick = commands.add_parser("quick", help="the cost of five calls, in under three minutes")
    quick.add_argument("--baseline", type=Path, help="another checkout, set up, to compare with")
    commands.add_parser("rest", help="three calls by REST, by gRPC, and of the FastAPI service")
    commands.add_parser("full", help="all services and calls, by workers and rows; with plots")
    python = commands.add_parser("python", help="the same build on several versions of Python")
    python.add_argument("versions", nargs="+", help="as 3.13: see `make bench-python`")
    commands.add_parser("client", help="what the Python client adds to the CPU of a bare stub")
    check = commands.add_parser("guard", help="fail if GetTask costs more than is committed")
    check.add_argument("--renew", action="store_true", help="write the committed figure anew")
    return parser


if __name__ == "__main__":
    main()
