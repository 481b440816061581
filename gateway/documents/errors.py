"""Examples of errors: the statuses of the service, as the gateway writes them, by reason."""

from collections.abc import Iterator

from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status

from gateway.documents.schemas import EXAMPLE_ID, Json
from server import errors
from server.calls.statuses import DOMAIN, TABLE, internal_status, status_of
from storage import errors as storage
from taskservice.v1.task_pb2 import TASK_STATUS_CANCELLED, TASK_STATUS_COMPLETED

_REQUEST_ID = "5f0c3a52-9c1e-4f5e-8b0d-2f1a7c6e9d10"

# What the exceptions of the table are made from: those of a task from its id, others from nothing.
_ARGUMENTS: dict[type[Exception], tuple[object, ...]] = {
    errors.InvalidRequestError: (
        [errors.violation("task.title", "must not be blank", "TASK_TITLE_NOT_BLANK")],
    ),
    errors.TransitionNotAllowedError: (EXAMPLE_ID, TASK_STATUS_COMPLETED, TASK_STATUS_CANCELLED),
    errors.PermissionDeniedError: ("tasks:write",),
    errors.RequestTooLargeError: (300_000, 262_144),
    errors.AnswerTooLargeError: (1000,),
    errors.RateLimitedError: ("ann", 1.0),
    errors.TooManyWatchesError: ("ann",),
    errors.TooManyFiltersError: ("ann", 20),
    storage.RequestIdReusedError: (_REQUEST_ID,),
    storage.DatabaseUnavailableError: ("",),
}


def error_examples() -> dict[str, Json]:
    """Return an example of the error for each reason."""
    found = {}
    for status in _statuses():
        example = MessageToDict(
            status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        found[example["details"][0]["reason"]] = example
    return found | {"MEDIA_TYPE_NOT_SUPPORTED": _of_the_gateway()}


def _statuses() -> Iterator[Status]:
    for kind in TABLE:
        is_of_a_task = issubclass(kind, storage.TaskError)
        error = kind(*_ARGUMENTS.get(kind, (EXAMPLE_ID,) if is_of_a_task else ()))
        vars(error).setdefault("retry_seconds", 1.5)  # Else it is random.
        if status := status_of(error):
            yield status
    yield internal_status(_REQUEST_ID)


def _of_the_gateway() -> Json:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "MEDIA_TYPE_NOT_SUPPORTED",
        "domain": DOMAIN,
        "metadata": {},
    }
    return {"code": 3, "message": "the body must be application/json", "details": [info]}
