"""A peer's process as seen from here: start it, ask it, watch its memory, end it. See `child` for what it answers."""

import json
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.processes import memory_mb, session

CHILD = Path(__file__).with_name("child.py")
MEMORY_POLL_S = 0.25
END_S = 5.0  # a process that has lost its input has this long to end by itself


class PeerError(ValueError):
    """What a peer did wrong, in a line; `peer` is its name."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(reason)
        self.peer = peer


class Missing(PeerError):
    """A peer's package or environment is not there."""


class Child:
    """One running adapter, in a session of its own with all processes that it starts.

    Args:
        command: what to run; `child` explains the protocol.
        job: what the adapter is told.
        log: file for its standard error.
        limit_s: an answer that takes longer is an error.
    """

    def __init__(self, name: str, command: list[str], job: dict[str, Any], log: Path, limit_s: float) -> None:
        self.name, self.log, self.limit_s = name, log, limit_s
        self.memory_mb = 0.0  # most of all requests that were watched
        self._received = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
            )
        self._send(job)

    def ask(self, do: str, watch: bool = False, limit_s: float | None = None, **request: Any) -> dict[str, Any]:
        """One request and its answer.

        Args:
            watch: look at the memory of its processes meanwhile. That takes time: not where speed is measured.
            limit_s: for this request, instead of the usual one.

        Raises:
            Missing: the adapter's package is not there.
            PeerError: it failed, ended, is silent for longer than the limit, or its answer is none.
        """
        self._send({"do": do, **request})
        line = self._line(do, watch, limit_s or self.limit_s)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        match answer:
            case {"answer": dict(found)}:
                return found
            case {"missing": str(what)}:
                raise Missing(self.name, what)
            case {"error": str(what)}:
                raise PeerError(self.name, f"{' '.join(what.split())} (see {self.log})")
        raise PeerError(self.name, f"answered {do!r} with {line[:60]!r}, which is no answer")

    def close(self) -> None:
        """End it and whatever it has started."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which reading will show
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _line(self, do: str, watch: bool, limit_s: float) -> str:
        assert self._process.stdout is not None
        source, deadline = self._process.stdout.fileno(), time.monotonic() + limit_s
        while b"\n" not in self._received:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise PeerError(self.name, f"no answer to {do!r} in {limit_s:g} s (see {self.log})")
            if watch:
                self.memory_mb = max(self.memory_mb, memory_mb(session(self._process.pid)))
            if select.select([source], [], [], min(left_s, MEMORY_POLL_S) if watch else left_s)[0]:
                received = os.read(source, 1 << 16)
                if not received:
                    raise PeerError(self.name, self._last_words(do))
                self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line.decode(errors="replace")

    def _last_words(self, do: str) -> str:
        code = self._process.wait()
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        return f"{how} at {do!r}{': ' + lines[-1].strip() if lines else ''} (see {self.log})"
