"""The wheel alone, in an empty environment: the program of the README."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
VERSION = metadata.version("task-service-client")
FOREIGN = ("server/", "storage/", "gateway/", "tests/")


def build(folder: Path, kind: str, project: Path = PROJECT) -> Path:
    """Build a distribution of the client into a folder."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory"]
    subprocess.run([*command, str(folder)], cwd=project, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), "wheel")


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def read(wheel: Path, name: str) -> str:
    """Read a file of the metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"task_service_client-{VERSION}.dist-info/{name}").decode()


def readme_program(address: str) -> str:
    """Return the first program of the README, for the service at this address."""
    program = (PROJECT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "127.0.0.1:50051" in program
    return program.replace("127.0.0.1:50051", address)


def test_the_wheel_alone_makes_the_first_calls(wheel: Path, address: str, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, str(wheel)], check=True, cwd=tmp_path)
    program = readme_program(address)
    assert len(program.strip().splitlines()) <= 10
    ran = subprocess.run(
        [str(python), "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert "write the report" in ran.stdout


def test_the_wheel_contains_the_stubs_and_nothing_of_the_service(wheel: Path) -> None:
    found = names(wheel)
    assert {"taskservice/v1/task_pb2.py", "buf/validate/validate_pb2.py"} <= set(found)
    assert {"taskservice/v1/task_service_pb2_grpc.py", "taskservice_client/__init__.py"} <= set(
        found
    )
    assert "taskservice_client/service_config.json" in found
    assert [name for name in found if name.startswith(FOREIGN)] == []


def test_the_wheel_contains_the_types(wheel: Path) -> None:
    found = set(names(wheel))
    assert {
        f"{package}/py.typed" for package in ("taskservice_client", "taskservice", "buf")
    } < found
    stubs = {name for name in found if name.endswith(("_pb2.py", "_pb2_grpc.py"))}
    assert {f"{name}i" for name in stubs} <= found
    assert "Classifier: Typing :: Typed" in read(wheel, "METADATA")


def test_the_wheel_contains_the_license(wheel: Path) -> None:
    license_ = (PROJECT.parents[1] / "LICENSE").read_text()
    assert read(wheel, "licenses/LICENSE") == license_


def test_a_source_distribution_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "sdist").mkdir()
    source = build(tmp_path / "sdist", "sdist")
    subprocess.run(["tar", "-xzf", str(source), "-C", str(tmp_path)], check=True)
    unpacked = tmp_path / source.name.removesuffix(".tar.gz")
    assert names(build(tmp_path / "wheel", "wheel", unpacked)) == names(wheel)
