"""A real S3 server on loopback (moto's) behind a layer that delays, fails and counts requests."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "shards"


class Request(NamedTuple):
    method: str
    path: str
    range: str
    status: int
    num_bytes: int  # of the body that was sent


class S3Server:
    """Settings may be changed while it runs.

    latency_s: before each answer. fail: the share of requests that fail, evenly, in three ways in turn: 503, 500, and a
    body that ends too soon. refuse: the error, if any, that (method, path) always gets. hang_s: before the answer;
    stall_s: in the middle of a shard.
    """

    def __init__(self) -> None:
        self.latency_s = self.fail = self.hang_s = self.stall_s = 0.0
        self.refuse: Callable[[str, str], str] = lambda method, path: ""
        self.requests: list[Request] = []
        self.num_failed = 0
        self._due, self._lock = 0.0, threading.Lock()
        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        self.latency_s = self.fail = self.hang_s = self.stall_s = 0.0
        self.refuse = lambda method, path: ""
        self.requests.clear()

    def gets(self, suffix: str = "") -> list[Request]:
        return [r for r in self.requests if r.method == "GET" and r.status in (200, 206) and r.path.endswith(suffix)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        time.sleep(self.latency_s)
        if self.hang_s:
            time.sleep(self.hang_s)
        with self._lock:
            self._due += self.fail
            failed = self._due >= 1
            self._due -= failed
            self.num_failed += failed
            way = self.num_failed % 3 if failed else -1
        code = self.refuse(method, path) or {0: "SlowDown", 1: "InternalError"}.get(way, "")
        if code:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status = {"SlowDown": "503 Slow Down", "AccessDenied": "403 Forbidden"}.get(
                code, "500 Internal Server Error"
            )
            body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            start_response(status, [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
            return [body]
        seen: dict[str, Any] = {}

        def note(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            seen["status"] = int(status.split()[0])
            return start_response(status, headers, *rest)

        body = b"".join(self._app(environ, note))
        sent = body[: len(body) // 2] if way == 2 and method == "GET" else body
        record = Request(method, path, environ.get("HTTP_RANGE", ""), seen["status"], len(sent))
        with self._lock:
            self.requests.append(record if len(sent) == len(body) else record._replace(status=0))
        return self._slowly(sent) if self.stall_s and path.endswith(".tar") else [sent]

    def _slowly(self, body: bytes) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        time.sleep(self.stall_s)
        yield body[len(body) // 2 :]
