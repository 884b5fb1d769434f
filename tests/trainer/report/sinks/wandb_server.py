"""A stand-in for the W&B server: it keeps what each run id's history has at which line, and counts what overwrites."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4


class WandbServer:
    """Answers on 127.0.0.1 as a context manager. `remembers`: tells a client how many lines a run has already.

    `trouble`: "silent" takes connections and never answers, "broken" answers every request with status 503.
    """

    def __init__(self, *, remembers: bool = False, trouble: str | None = None, port: int = 0) -> None:
        self.remembers, self.trouble = remembers, trouble
        self.requests: list[str] = []
        self.history: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self.overwritten: list[tuple[str, int]] = []
        self.groups: dict[str, str] = {}
        self.projects: dict[str, str] = {}
        self.entities: dict[str, str] = {}
        self.lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            server_state = owner

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{self.port}", "WANDB_API_KEY": KEY}

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def steps(self, run_id: str) -> list[int]:
        """Our step of every line of a run's history, in order of the lines."""
        return [line["step"] for _, line in sorted(self.history[run_id].items())]

    def take_history(self, run_id: str, offset: int, lines: list[str]) -> None:
        """Keep lines of the history from `offset` on."""
        for number, line in enumerate(lines, start=offset):
            row = json.loads(line)
            if self.history[run_id].get(number, row) != row:
                self.overwritten.append((run_id, number))
            self.history[run_id][number] = row

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL request: as much as the client asks about runs."""
        name = given.get("name") or ""
        owner = {"id": "E", "name": given.get("entity") or "somebody"}
        run = {"id": f"R-{name}", "name": name, "displayName": given.get("displayName") or name, "config": "{}"}
        run |= {"project": {"id": "P", "name": given.get("project") or "", "entity": owner}, "tags": []}
        run |= {"summaryMetrics": "{}", "historyLineCount": len(self.history.get(name, {})) if self.remembers else 0}
        run |= {"logLineCount": 0, "eventsLineCount": 0, "historyTail": "[]", "eventsTail": "[]", "wandbConfig": "{}"}
        if self.remembers and self.history.get(name):
            newest = max(self.history[name].items())[1]
            run |= {"historyTail": json.dumps([json.dumps(newest)]), "wandbConfig": '{"t": {}}'}
        if "upsertBucket" in query:
            self.projects[name] = given.get("project") or self.projects.get(name, "")
            self.entities[name] = given.get("entity") or self.entities.get(name, "")
            self.groups[name] = given.get("groupName") or self.groups.get(name, "")
            return {"upsertBucket": {"bucket": run, "inserted": name not in self.history}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": []}}
        known = run if self.remembers and self.history.get(name) else None
        viewer = {"id": "V", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "model": {"id": "P", "bucket": known}, "serverInfo": {"features": []}}


class _Handler(BaseHTTPRequestHandler):
    server_state: WandbServer

    def do_POST(self) -> None:
        state = self.server_state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with state.lock:
            state.requests.append(self.path)
        if state.trouble == "silent":
            time.sleep(120)
        elif state.trouble == "broken":
            self.send_error(503)
        elif self.path.endswith("/file_stream"):
            self._stream(json.loads(body))
        elif self.path.endswith("/graphql"):
            asked = json.loads(body)
            self._reply({"data": state.answer(asked.get("query", ""), asked.get("variables") or {})})
        else:
            self._reply({})

    do_GET = do_PUT = do_POST

    def _stream(self, sent: dict[str, Any]) -> None:
        run_id = self.path.split("/")[-2]
        with self.server_state.lock:
            for name, part in (sent.get("files") or {}).items():
                if name.endswith("history.jsonl"):
                    self.server_state.take_history(run_id, part["offset"], part["content"])
        self._reply({"exitcode": None, "limits": {}})

    def _reply(self, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
