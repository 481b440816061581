"""Prepare the service on Node: its packages are installed for the run, and never committed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

NODE_FOLDER = Path(".bench/node").resolve()
_SOURCE = Path(__file__).parent / "services/node"


def prepare_node() -> str | None:
    """Install the packages; return why the service cannot run, or None."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "there is no Node on this machine"
    shutil.copytree(_SOURCE, NODE_FOLDER, dirs_exist_ok=True)
    quiet = ["--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
    installed = subprocess.run([npm, "install", *quiet], cwd=NODE_FOLDER, check=False)
    return "npm could not install its packages" if installed.returncode else None
