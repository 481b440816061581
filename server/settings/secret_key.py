"""The secret key of development: made once, and kept in a file."""

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

MIN_CHARACTERS = 32


def kept_key(folder: Path) -> bytes:
    """Read the key that is kept in the folder, or make one. Raises: OSError."""
    path = folder / "secret_key"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder) as file:
            file.write(secrets.token_urlsafe(MIN_CHARACTERS))
            file.flush()
            with suppress(FileExistsError):  # Linking is atomic: the first key stays, and whole.
                os.link(file.name, path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PermissionError(
            f"others may use {path}: remove it, and a new one is made; or chmod 600"
        )
    return path.read_bytes()
