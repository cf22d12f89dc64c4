"""A W&B server for one test, on the loopback: it keeps the rows of histories, and can go away."""

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers what W&B's uploads ask, with a status.

    Attributes:
        rows: The rows of the history.
        asked: The names of the GraphQL operations.
    """

    daemon_threads = True

    def __init__(self, port: int = 0, status: int = 200) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.status = status
        self.rows: list[dict[str, Any]] = []
        self.asked: list[str] = []

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Returns the answer to a request."""
        if path.endswith("/file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            self.rows.extend(json.loads(row) for row in history.get("content", []))
        if path != "/graphql":
            return {}
        asked = json.loads(body)
        self.asked.append(asked["operationName"])
        if "upsertBucket" in asked["query"]:
            given = asked["variables"]
            entity = {"id": "1", "name": "me"}
            bucket = {
                "id": "1", "name": given["name"], "displayName": given["name"], "config": "{}",
                "project": {"id": "1", "name": given["project"], "entity": entity},
                "historyLineCount": len(self.rows),
            }  # fmt: skip
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": not self.rows}}}
        return {"data": {"serverInfo": {"features": []}, "createRunFiles": {"files": []}}}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answers."""
        assert isinstance(self.server, Server)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        answer = json.dumps(self.server.answer(self.path, body)).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(answer)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def serving(port: int = 0, status: int = 200) -> Iterator[Server]:
    """Opens a scope with a server."""
    with Server(port, status) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@contextmanager
def silent(port: int = 0) -> Iterator[int]:
    """Opens a scope with a port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", port)) as listening:
        yield listening.getsockname()[1]


def closed() -> int:
    """Returns a port where nothing listens."""
    with silent() as port:
        return port
