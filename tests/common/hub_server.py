"""A stand-in for the Hugging Face Hub on loopback, with dataset repositories for huggingface_hub's file system.

It answers like the Hub for a repository's information, its tree and its files (with ranges). If something does not
exist or is not permitted, it answers with the Hub's `X-Error-Code`. `HF_ENDPOINT` points a new process at it; fsspec's
settings ("hf", "endpoint") point this one at it.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

TOKEN = "hf_testing"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Request(NamedTuple):
    path: str
    range: str
    status: int
    num_bytes: int


class HubServer:
    """repositories: "OWNER/NAME" → revision → directory. private, gated: those that want `TOKEN`; gated ones tell what
    they have to anyone. fail: (path) → the status, if any, that a request for it gets instead."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Path]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.fail: Callable[[str], int] = lambda path: 0
        self.requests: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def gets(self, suffix: str) -> list[Request]:
        return [
            r for r in self.requests if r.status in (200, 206) and "/resolve/" in r.path and r.path.endswith(suffix)
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        try:
            if status := self.hub.fail(path):
                raise _Refused(status, "")
            body, headers, status = self._answer(path)
        except _Refused as refused:
            body, headers, status = b"", {"X-Error-Code": refused.code} if refused.code else {}, refused.status
        self.hub.requests.append(Request(path, self.headers.get("Range", ""), status, len(body)))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _answer(self, path: str) -> tuple[bytes, dict[str, str], int]:
        words = path.strip("/").split("/")
        if words[:2] == ["api", "datasets"]:
            name, rest = "/".join(words[2:4]), words[4:]
            self._check_token(name, self.hub.private)
            kind, revision = rest[:2] if rest else ("revision", "main")
            root = self._revision(name, revision)
            if kind == "revision":
                return _json({"id": name, "sha": COMMIT, "siblings": [], "tags": [], "downloads": 0, "likes": 0})
            assert kind == "tree", path
            return _json(self._tree(root, unquote("/".join(rest[2:])), "recursive=true" in self.path.lower()))
        if words[0] != "datasets" or words[3:4] != ["resolve"]:
            raise _Refused(404, "")
        name, revision, inside = "/".join(words[1:3]), words[4], unquote("/".join(words[5:]))
        self._check_token(name, self.hub.private, "RepoNotFound")
        self._check_token(name, self.hub.gated, "GatedRepo")
        return self._file(self._revision(name, revision) / inside)

    def _check_token(self, name: str, closed: set[str], code: str = "RepoNotFound") -> None:
        if name in closed and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, code)

    def _revision(self, name: str, revision: str) -> Path:
        if name not in self.hub.repositories:
            raise _Refused(401, "RepoNotFound")  # as to anyone without a token: it may be private
        revision = "main" if revision == COMMIT else revision  # as whoever has asked for its information goes on
        if unquote(revision) not in self.hub.repositories[name]:
            raise _Refused(404, "RevisionNotFound")
        return self.hub.repositories[name][unquote(revision)]

    def _tree(self, root: Path, inside: str, recursive: bool) -> list[dict[str, Any]]:
        folder = root / inside
        if not folder.is_dir():
            raise _Refused(404, "EntryNotFound")
        entries = []
        for path in sorted(folder.rglob("*") if recursive else folder.iterdir()):
            name, oid = path.relative_to(root).as_posix(), hashlib.sha1(path.name.encode()).hexdigest()
            kind = "directory" if path.is_dir() else "file"
            entries.append(
                {"type": kind, "path": name, "oid": oid, "size": 0 if path.is_dir() else path.stat().st_size}
            )
        return entries

    def _file(self, path: Path) -> tuple[bytes, dict[str, str], int]:
        if not path.is_file():
            raise _Refused(404, "EntryNotFound")
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not (wanted := self.headers.get("Range", "")):
            return data, headers, 200
        first, last = wanted.removeprefix("bytes=").split("-")
        start, end = int(first), min(int(last or len(data) - 1) + 1, len(data))
        if start >= len(data):
            raise _Refused(416, "")
        return data[start:end], headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, 206


def _json(value: object) -> tuple[bytes, dict[str, str], int]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}, 200
