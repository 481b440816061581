"""The examples of the API reference, as they are written there."""

import re
import shlex
import subprocess

import pytest
from google.protobuf import json_format

from gateway.documents.schemas import EXAMPLE_ID
from taskservice.v1 import task_service_pb2 as pb
from tests.gateway.test_documents import METHODS, ROOT
from tests.support.rest import Gateway

PAGE = (ROOT / "docs" / "api.md").read_text()


def examples(program: str) -> dict[str, list[str]]:
    """Return the arguments of a program by the method that they are an example of."""
    sections = re.findall(r"^### (\w+)\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    found = {}
    for method, text in sections:
        if command := re.search(rf"^{program} .*$", text, re.MULTILINE):
            found[method] = shlex.split(command[0])[1:]
    return found


def test_every_method_has_its_examples() -> None:
    assert list(examples("curl")) == list(examples("grpcurl"))
    assert set(examples("curl")) == set(METHODS)


def test_examples_by_rest_succeed(gateway: Gateway) -> None:
    """In the order of the page: what one deletes, the next one undeletes."""
    answer = gateway.call(f"POST /tasks?task_id={EXAMPLE_ID}", {"title": "a task"})
    assert answer.status == 201, answer.body
    for method, arguments in examples("curl").items():
        if method != "WatchTasks":  # It does not end.
            run_curl(gateway, arguments)


def run_curl(gateway: Gateway, arguments: list[str]) -> None:
    here = [word.replace("localhost:8080", f"127.0.0.1:{gateway.port}") for word in arguments]
    command = ["curl", "--silent", "--fail-with-body", *here]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0, f"{here}: {ran.stdout}{ran.stderr}"


@pytest.mark.parametrize("method", examples("grpcurl"))
def test_examples_by_grpc_are_messages(method: str) -> None:
    arguments = examples("grpcurl")[method]
    assert arguments[-1] == f"taskservice.v1.TaskService/{method}"
    body = arguments[arguments.index("-d") + 1]
    json_format.Parse(body, getattr(pb, f"{method}Request")())
