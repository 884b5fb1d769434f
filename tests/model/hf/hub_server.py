"""A stand-in for the Hugging Face hub on 127.0.0.1: the requests that its client makes for a snapshot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repositories: dict[str, Path], *, gated: str = "") -> Iterator[tuple[str, list[str]]]:
    """Serve folders as repositories (org/name -> folder); the address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._serve(with_body=False)

        def do_GET(self) -> None:
            self._serve(with_body=True)

        def _serve(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            status, headers, body = _answer(path, repositories, gated)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def _answer(path: str, repositories: dict[str, Path], gated: str) -> tuple[int, dict[str, str], bytes]:
    parts = path.strip("/").split("/")
    name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
    if name == gated:
        return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b"{}"
    if name not in repositories:
        return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
    folder = repositories[name]
    if parts[0] == "api" and parts[4] == "revision":
        if parts[5] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b"{}"
        return 200, {"Content-Type": "application/json"}, json.dumps({"id": name, "sha": COMMIT}).encode()
    if parts[0] == "api":
        files = [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _digest(file)}
            for file in sorted(folder.iterdir())
        ]
        return 200, {"Content-Type": "application/json"}, json.dumps(files).encode()
    file = folder / parts[4]
    return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{_digest(file)}"'}, file.read_bytes()


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
