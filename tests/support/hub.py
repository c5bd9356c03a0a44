"""A local model hub that implements the part of the protocol needed for downloads, and counts requests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPEN, GATED = "google/siglip2-so400m-patch16-naflex", "someone/gated"


class Hub:
    """Serves a checkpoint folder as ``OPEN``, rejects ``GATED`` as gated, and any other name as missing.

    The files named in ``damaged`` arrive with one bit changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: set[str] = set()
        self.requests: Counter[tuple[str, str]] = Counter()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, with_body: bool) -> None:
                path = self.path.split("?")[0].strip("/")
                hub.requests[self.command, path.rsplit("/", 1)[-1]] += 1
                headers = {"X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
                status, body = hub.find(path, headers)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def find(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        route = next(name for name in ("/revision/", "/tree/", "/resolve/") if name in path)
        repository, _, rest = path.removeprefix("api/models/").partition(route)
        revision, _, file = rest.partition("/")
        if repository not in (OPEN, GATED):
            headers["X-Error-Code"], headers["X-Error-Message"] = "RepoNotFound", "Repository not found"
            return 404, b"{}"
        if revision not in ("main", COMMIT):
            headers["X-Error-Code"], headers["X-Error-Message"] = "RevisionNotFound", "Invalid rev id"
            return 404, b"{}"
        items = sorted(self.folder.iterdir())
        if route == "/revision/":
            names = [{"rfilename": item.name} for item in items]
            about = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": names, "private": False}
            return 200, json.dumps(about).encode()
        if route == "/tree/":
            tree = [
                {
                    "type": "file",
                    "path": item.name,
                    "size": item.stat().st_size,
                    "oid": hashlib.sha1(item.read_bytes()).hexdigest(),
                }
                for item in items
            ]
            return 200, json.dumps(tree).encode()
        if repository == GATED:
            headers["X-Error-Code"], headers["X-Error-Message"] = "GatedRepo", "Access to it is restricted"
            return 403, b"{}"
        body = (self.folder / file).read_bytes()
        # As the real hub: SHA-256 of large files, the git hash of small ones.
        git = hashlib.sha1(f"blob {len(body)}\0".encode() + body)
        checksum = hashlib.sha256(body) if file.endswith(".safetensors") else git
        headers["ETag"] = f'"{checksum.hexdigest()}"'
        if file in self.damaged:
            body = body[:-1] + bytes([body[-1] ^ 1])
        headers["Content-Type"] = "application/octet-stream"
        if file.endswith(".safetensors"):
            time.sleep(0.5)  # long enough for all processes of a test to request it
        return 200, body

    def environment(self, cache: Path) -> dict[str, str]:
        """Environment variables of a process that uses this hub."""
        inherited = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        tests = os.path.dirname(os.path.dirname(__file__))
        paths = [tests, *filter(None, [os.environ.get("PYTHONPATH")])]
        return inherited | {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join(paths),
        }


@contextmanager
def running(folder: Path) -> Iterator[Hub]:
    """Serve the folder within the block."""
    hub = Hub(folder)
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join(timeout=10)


def python(hub: Hub, folder: Path, *arguments: str, limit_s: float = 150) -> str:
    """Run Python in a folder, with the local hub, and return its output."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=hub.environment(folder / "cache"),
        capture_output=True,
        text=True,
        timeout=limit_s,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
