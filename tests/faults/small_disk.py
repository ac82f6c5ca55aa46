"""A file system of our own under a fleet's servers, which can be filled without filling another.

It is a tmpfs in a mount namespace of the process that asks for it, so it needs no rights where the
system lets a user have namespaces, disturbs nobody, and is gone with the process. Made to shrink
to what is used, it is full: the kernel itself answers ENOSPC, as a full disk does.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SIZE = "6g"  # at most; it takes memory only for what is written
MARK = "AINFERA_OWN_MOUNTS"
ROOM_LEFT = 64 * 1024


def with_own_mounts(module: str, arguments: Sequence[str]) -> None:
    """Begin this process anew where it may mount; returns if it is there, or if it may not."""
    if MARK in os.environ or (words := namespace()) is None:
        return
    command = [*words, sys.executable, "-m", module, *arguments]
    os.execvpe(command[0], command, {**os.environ, MARK: "1"})


def namespace() -> list[str] | None:
    """The words that give a command mounts of its own; None where that is not allowed."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    words = [unshare, "--mount"]
    if os.geteuid() != 0:
        words += ["--user", "--map-current-user", "--keep-caps"]
    with tempfile.TemporaryDirectory() as folder:
        trial = [*words, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        allowed = subprocess.run(trial, capture_output=True).returncode == 0
    return words if allowed else None


@contextmanager
def own_disks(home: Path) -> Iterator[Path | None]:
    """A disk of its own at `home` and another at `home/valkey`; None where there are none."""
    if MARK not in os.environ:
        yield None
        return
    home.mkdir(mode=0o700)
    _mount(home)
    try:
        (home / "valkey").mkdir(mode=0o700)
        _mount(home / "valkey")
        yield home
    finally:
        for folder in (home / "valkey", home):
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def fill(disk: Path) -> None:
    """Take what is free away. Raises OSError if that did not succeed."""
    for room in (0, ROOM_LEFT, 4 * ROOM_LEFT, 16 * ROOM_LEFT, 64 * ROOM_LEFT):
        state = os.statvfs(disk)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        if _mount(disk, f"remount,size={used + room}") == 0:
            return
    raise OSError(f"{disk} could not be filled")


def make_room(disk: Path) -> None:
    if _mount(disk, f"remount,size={SIZE}") != 0:
        raise OSError(f"{disk} stays full")


def _mount(folder: Path, options: str = f"size={SIZE},mode=700") -> int:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode
