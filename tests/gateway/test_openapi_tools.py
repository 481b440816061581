"""Other programs take the OpenAPI document: a linter, a generator of types, a fuzzer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.test_documents import OPENAPI, ROOT
from tests.support.rest import Gateway

PACKAGES = ("@redocly/cli@2.77.0", "openapi-typescript@7.13.0", "typescript@5.9.3")
FOLDER = ROOT / ".npm-tools"
EXAMPLES = "15"


def run(*command: str | Path, cwd: Path | None = None) -> None:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of npm's programs, installed once."""
    if shutil.which("npm") is None:
        if os.environ.get("CI"):
            pytest.fail("npm is not installed")
        pytest.skip("needs npm")
    installed = FOLDER / "node_modules" / ".bin"
    if not (installed / "redocly").exists():
        FOLDER.mkdir(exist_ok=True)
        options = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts")
        run("npm", "install", "--prefix", FOLDER, *options, *PACKAGES)
    return installed


def test_the_linter_finds_nothing(programs: Path) -> None:
    """Health needs no client, and so has no error of one."""
    run(programs / "redocly", "lint", OPENAPI, "--skip-rule", "operation-4xx-response")


def test_types_of_the_document_compile(programs: Path, tmp_path: Path) -> None:
    types = tmp_path / "tasks.ts"
    run(programs / "openapi-typescript", OPENAPI, "--output", types)
    use = (
        'import type { components } from "./tasks";\n'
        'export const task: components["schemas"]["TaskCreate"] = { title: "a task" };\n'
    )
    (tmp_path / "use.ts").write_text(use)
    run(programs / "tsc", "--noEmit", "--strict", tmp_path / "use.ts")


def test_answers_are_as_described(gateway: Gateway, tmp_path: Path) -> None:
    """Of a bounded number of requests that the fuzzer makes, valid ones and others."""
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance,response_headers_conformance"
    )
    run(
        *(
            Path(sys.executable).parent / "st",
            "run",
            f"http://127.0.0.1:{gateway.port}/openapi.json",
        ),
        *("--checks", checks, "--exclude-path", "/tasks:watch"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES),
        *("--seed", "1", "--generation-database", "none", "--no-color"),
        cwd=tmp_path,
    )
