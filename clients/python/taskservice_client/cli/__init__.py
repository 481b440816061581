"""The command line `tasks`, for operators: `pip install 'task-service-client[cli]'`."""

import sys


def main() -> None:
    """Run `tasks`, if the packages of the extra are installed."""
    try:
        from taskservice_client.cli.__main__ import main as run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        sys.exit(f"tasks: no module {error.name}: pip install 'task-service-client[cli]'")
    run()
