"""Add the generated stubs to the distributions: the packages `taskservice` and `buf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_STUBS = "taskservice/v1", "buf/validate"
_TYPED = "taskservice/py.typed", "buf/py.typed"


class StubsHook(BuildHookInterface[Any]):
    """Include the stubs from the repository, or from the source distribution built from it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        generated = root / "generated"
        if not generated.is_dir():
            generated = root.parents[1] / "generated"
        into = "generated/" if self.target_name == "sdist" else ""
        build_data["force_include"] |= {str(generated / name): into + name for name in _STUBS}
        if self.target_name == "wheel":
            build_data["force_include"] |= {f"stubs/{name}": name for name in _TYPED}
