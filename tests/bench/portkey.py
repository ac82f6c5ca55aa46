"""Portkey's gateway beside ours, where npm is at hand: installed for the run, then forgotten."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.stack import Child, StackError, free_port, start_child

PACKAGE = "@portkey-ai/gateway"
# The newer releases of its HTTP server make this release answer every stream with a 500.
MANIFEST = {
    "private": True,
    "dependencies": {PACKAGE: "1.15.2"},
    "overrides": {"@hono/node-server": "1.13.8"},
}
_INSTALL_TIMEOUT_S = 180.0
_START_TIMEOUT_S = 30.0


class NoPortkey(Exception):
    """Why Portkey cannot be measured here."""


@contextmanager
def running_portkey(folder: Path, logs: Path) -> Iterator[tuple[Child, int]]:
    """Install the gateway into `folder` and run it; gives its process and port.

    Raises NoPortkey where npm or node is missing, or cannot install or start it.
    """
    server = _install(folder)
    port = free_port()
    command = ["node", str(server), f"--port={port}", "--headless"]
    child = start_child("portkey", command, logs, {"NODE_ENV": "production"})
    try:
        _wait_for(child, port)
        yield child, port
    finally:
        child.stop()


def _install(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise NoPortkey("npm or node is not at hand")
    command = [npm, "install", "--no-audit", "--no-fund", "--silent", "--ignore-scripts"]
    (folder / "package.json").write_text(json.dumps(MANIFEST))
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise NoPortkey(f"npm did not install {PACKAGE} in time") from None
    server = folder / "node_modules" / PACKAGE / "build" / "start-server.js"
    if done.returncode != 0 or not server.exists():
        raise NoPortkey(f"npm could not install {PACKAGE}: {done.stderr.strip()[-200:]}")
    return server


def _wait_for(child: Child, port: int) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            child.alive()
            socket.create_connection(("127.0.0.1", port), 1).close()
        except StackError as error:
            raise NoPortkey(str(error)) from None
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise NoPortkey("it did not listen in time")
