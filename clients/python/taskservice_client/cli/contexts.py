"""Contexts: named services with their credentials, in a file that only its owner can read."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import typer
import yaml

from taskservice_client.cli.exits import CommandError

FILE_NAME = "contexts.yaml"


@dataclass
class Contexts:
    """The contexts by name, each with the options of a connection, and the one in use."""

    current: str = ""
    contexts: dict[str, dict[str, str]] = field(default_factory=dict)

    def options(self, name: str) -> Mapping[str, str]:
        """Return the options of a context. Raises: CommandError, if there is none."""
        if name not in self.contexts:
            raise CommandError(f"there is no context {name!r}: see `tasks context list`")
        return self.contexts[name]


def contexts_file() -> Path:
    """Return the path of the file: TASKS_CONTEXTS_FILE, else in XDG_CONFIG_HOME/tasks."""
    given = os.environ.get("TASKS_CONTEXTS_FILE")
    return Path(given) if given else Path(typer.get_app_dir("tasks")) / FILE_NAME


def read_contexts() -> Contexts:
    """Read the contexts; without a file there are none."""
    path = contexts_file()
    try:
        content = yaml.safe_load(path.read_text()) or {}
        return Contexts(content.get("current") or "", dict(content.get("contexts") or {}))
    except FileNotFoundError:
        return Contexts()
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise CommandError(f"{path}: cannot be read as contexts: {error}") from error


def write_contexts(contexts: Contexts) -> None:
    """Replace the file as a whole, with the mode 0600."""
    path = contexts_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with open(handle, "w") as file:  # mkstemp opened it with the mode 0600
        yaml.safe_dump(asdict(contexts), file, sort_keys=False, allow_unicode=True)
    os.replace(name, path)


def context_names(incomplete: str = "") -> list[str]:
    """Complete the name of a context; a file that cannot be read has none."""
    with suppress(CommandError):
        return [name for name in read_contexts().contexts if name.startswith(incomplete)]
    return []
