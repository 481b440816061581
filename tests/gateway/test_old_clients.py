"""Calls of the REST service that this one replaces, in their order, as a client makes them."""

from tests.support.rest import JSON, Gateway


def test_a_client_of_the_old_service_finds_its_routes(gateway: Gateway) -> None:
    assert gateway.call("GET /health").status == 200

    created = gateway.call("POST /tasks", {"title": "Write the report", "description": "in short"})
    assert created.status == 201
    task = created.json
    path = f"/tasks/{task['id']}"
    assert gateway.call(f"GET {path}").json == task

    changed = {"title": "Write it", "status": "TASK_STATUS_IN_PROGRESS", "assigned_to": "ann"}
    answer = gateway.call(f"PUT {path}", changed)
    assert answer.status == 200
    assert {name: answer.json[name] for name in changed} == changed
    assert answer.json["description"] == ""

    listed = gateway.call("GET /tasks?page_size=10&include_total_size=true").json
    assert [found["id"] for found in listed["tasks"]] == [task["id"]]
    assert listed["total_size"] == 1

    summary = gateway.call("GET /tasks/stats/summary").json
    assert summary["total"] == 1

    gone = gateway.call(f"DELETE {path}")
    assert (gone.status, gone.body) == (204, b"")
    assert gateway.call("GET /tasks").json["tasks"] == []
    assert gateway.call(f"PUT {path}", {"title": "again"}).status == 400
    assert gateway.call("POST /tasks", {"description": "no title"}).status == 400
    assert gateway.call("GET /tasks/unknown", headers=JSON).status == 400
