"""Build the example programs in other languages, and run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.programs import debian_program
from tests.support.service import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
NPM_TOOLS = ROOT / ".npm-tools" / "typescript"
GO_PACKAGES = {
    "go": "golang-go",
    "protoc-gen-go": "protoc-gen-go",
    "protoc-gen-go-grpc": "protoc-gen-go-grpc",
}

# Debian's Go packages are sources in a GOPATH; grpc 1.33 retries only when told to.
GO = {"GO111MODULE": "off", "GRPC_GO_RETRY": "on"}


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command of a build and return its output."""
    ran = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


class Example(NamedTuple):
    """A built program, and the folder of its stubs and service config."""

    command: tuple[str, ...]
    folder: Path

    def _environment(self, address: str, settings: Mapping[str, str]) -> dict[str, str]:
        names = ("PATH", "HOME")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        return {**kept, **GO, "TASKS_ADDRESS": address, **settings}

    def run(
        self, address: str, *arguments: str, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the program to its end."""
        return subprocess.run(
            (*self.command, *arguments),
            cwd=self.folder,
            env=self._environment(address, settings),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    @contextmanager
    def running(
        self, address: str, *arguments: str, **settings: str
    ) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
        """Run the program and collect the lines that it prints; kill it at the end."""
        lines: list[str] = []
        with subprocess.Popen(
            (*self.command, *arguments),
            cwd=self.folder,
            env=self._environment(address, settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            output = process.stdout
            reader = threading.Thread(target=lambda: lines.extend(map(str.strip, output)))
            reader.start()
            try:
                yield process, lines
            finally:
                process.kill()
                reader.join(PATIENCE_SECONDS)


def require_go() -> None:
    for program, package in GO_PACKAGES.items():
        debian_program(program, package)


def built_go(folder: Path) -> Example:
    """Build examples/go in a GOPATH, with Debian's packages."""
    require_go()
    source = folder / "src" / "taskservice.example"
    shutil.copytree(ROOT / "examples/go", source, ignore=shutil.ignore_patterns("gen"))
    run("make", "stubs-go", f"INTO={source}/gen", cwd=ROOT)
    program = folder / "tasks"
    path = f"{folder}:/usr/share/gocode"
    run("go", "build", "-o", program, "taskservice.example", cwd=folder, **GO, GOPATH=path)
    return Example((str(program),), source)


def require_npm() -> None:
    if shutil.which("npm") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("npm is not installed")
        pytest.skip("needs npm")


def built_typescript(folder: Path) -> Example:
    """Build examples/typescript with packages that are installed once."""
    require_npm()
    source = folder / "typescript"
    ignored = shutil.ignore_patterns("gen", "node_modules", "built")
    shutil.copytree(ROOT / "examples/typescript", source, ignore=ignored)
    (source / "node_modules").symlink_to(_node_modules(source / "package.json"))
    tools = source / "node_modules" / ".bin"
    path = f"{tools}:{os.environ['PATH']}"
    run("make", "stubs-ts", f"INTO={source}/gen", cwd=ROOT, PATH=path)
    run(tools / "tsc", cwd=source)
    return Example(("node", "built/src/main.js"), source)


def _node_modules(package: Path) -> Path:
    """Return the folder of the packages that package.json names."""
    installed = NPM_TOOLS / "package.json"
    if not installed.exists() or installed.read_text() != package.read_text():
        NPM_TOOLS.mkdir(parents=True, exist_ok=True)
        shutil.copy(package, installed)
        options = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts")
        try:
            run("npm", "install", *options, cwd=NPM_TOOLS)
        except BaseException:
            installed.unlink()
            raise
    return NPM_TOOLS / "node_modules"
