"""Run the images that buildah built: another uid, a read-only root, namespaces of their own."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.support.service import PATIENCE_SECONDS, wait_until

# Group 0 and any uid, as on OpenShift.
UID = 12345

_AS_UID = (
    *("setpriv", f"--reuid={UID}", "--regid=0", "--clear-groups"),
    *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
)
# Arguments: the root file system, a folder to mount at /mnt, the command.
_READ_ONLY = """
root=$1 folder=$2; shift 2
mount --bind "$root" "$root"
mount --bind "$folder" "$root/mnt"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"
"""


def _buildah(*arguments: str) -> str:
    command = [*shlex.split(os.environ["BUILDAH"]), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Image(NamedTuple):
    """An image: its root file system, mounted, and its configuration."""

    root: Path
    config: dict[str, Any]

    @property
    def env(self) -> dict[str, str]:
        return dict(each.split("=", 1) for each in self.config["Env"])


@contextmanager
def mounted(name: str) -> Iterator[Image]:
    """Mount an image."""
    config = json.loads(_buildah("inspect", "--type", "image", name))["Docker"]["config"]
    container = _buildah("from", name)
    try:
        yield Image(Path(_buildah("mount", container)), config)
    finally:
        _buildah("rm", container)


class Container:
    """A running image, and its log."""

    def __init__(self, image: Image, folder: Path, shared: Path, settings: Mapping[str, str]):
        self.image = image
        self._log = folder / f"{image.config['Labels']['org.opencontainers.image.title']}.log"
        self._env = [f"{name}={value}" for name, value in {**image.env, **settings}.items()]
        command = [*image.config["Entrypoint"], *image.config["Cmd"]]
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"]
        with self._log.open("w") as log:
            self._unshare = subprocess.Popen(
                [*namespaces, _READ_ONLY, "", image.root, shared, *self._inside(command)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        (self.init,) = wait_until(self._first_process, "the container starts")
        """The first process."""

    def _inside(self, command: Sequence[str]) -> list[str]:
        return [*_AS_UID, "env", "-i", *self._env, *command]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _first_process(self) -> list[psutil.Process]:
        """Return it once it has the image's root; until then it is not in the container."""
        return [
            child
            for child in psutil.Process(self._unshare.pid).children()
            if Path(f"/proc/{child.pid}/root").readlink() == self.image.root or self.has_ended()
        ]

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as `docker exec` does."""
        given = [f"{name}={value}" for name, value in settings.items()]
        enter = ["nsenter", f"--target={self.init.pid}", "--mount", "--pid", "--root", "--wdns=/"]
        return subprocess.run(
            [*enter, *self._inside(["env", *given, *command])],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def check_health(self, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the image's HEALTHCHECK."""
        kind, *command = self.image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*command, **settings)

    def await_healthy(self) -> None:
        wait_until(
            lambda: self.has_ended() or self.check_health().returncode == 0, "the image is healthy"
        )
        assert not self.has_ended(), self.log

    def has_ended(self) -> bool:
        return self._unshare.poll() is not None

    def stop(self) -> int:
        """Send SIGTERM to the first process, as engines do; return its exit code."""
        self.init.send_signal(signal.SIGTERM)
        return self._unshare.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        """End the first process, and with it all others of its namespace.

        Another uid cancels the signal that `--kill-child` arranges.
        """
        with suppress(psutil.NoSuchProcess):
            self.init.kill()
        self._unshare.wait(PATIENCE_SECONDS)


@contextmanager
def running(image: Image, folder: Path, shared: Path, **settings: str) -> Iterator[Container]:
    """Run an image until it is healthy; kill it at the end."""
    container = Container(image, folder, shared, settings)
    with ExitStack() as stack:
        stack.callback(container.kill)
        container.await_healthy()
        yield container
