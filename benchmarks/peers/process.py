"""Start, query and end a peer's process. `child` documents its answers."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from penstock.benchmarks.measure import Sample
from penstock.benchmarks.peers.check import Seen
from penstock.benchmarks.processes import family, memory_mb

CHILD = Path(__file__).with_name("child.py")
LIMIT_S = 300.0  # a program that is silent for longer has failed
POLL_S = 0.2
END_S = 5.0  # time for a process without its connection to end by itself
IMPORTS = ("ImportError", "ModuleNotFoundError")


class PeerError(ValueError):
    """A peer's failure, in a line. peer: its name. missing: its package or environment is not installed."""

    def __init__(self, peer: str, reason: str, missing: bool = False) -> None:
        super().__init__(reason)
        self.peer, self.missing = peer, missing


class Child:
    """One running adapter, in a session of its own with all processes that it starts: a `measure.Program`.

    log: file for its output. seen: descriptions of its marked images and of its timed images. figures: its figures for
    the result, other than rates.
    """

    seen: tuple[Seen, Seen]
    figures: dict[str, object]

    def __init__(self, name: str, python: Path, job: Mapping[str, object], log: Path) -> None:
        self.name, self.log = name, log
        self._connection, theirs = Pipe()
        command, fd = [str(python), "-P", str(CHILD), str(theirs.fileno())], theirs.fileno()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as output, theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[fd], start_new_session=True
            )
        self._send(job)

    def answer(self, limit_s: float = LIMIT_S) -> Any:
        """Return its next answer. Raises PeerError if it has ended, or does not answer within the limit."""
        deadline = time.monotonic() + limit_s
        with suppress(EOFError, ConnectionError):
            while self._connection.poll(POLL_S) or self._process.poll() is None:
                if self._connection.poll():
                    return self._connection.recv()
                if time.monotonic() > deadline:
                    raise PeerError(self.name, f"no answer in {limit_s:g} s (see {self.log})")
        code = self._process.wait()
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        if last.startswith(IMPORTS):
            raise PeerError(self.name, last, missing=True)
        how = f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
        raise PeerError(self.name, f"{how}: {last} (see {self.log})")

    def run(self, seconds: float) -> Sample:
        self._send(("run", seconds))
        num_images, elapsed = self.answer(LIMIT_S + seconds)
        return Sample(num_images / elapsed)

    def describe(self, num_images: int) -> Seen:
        """Have the peer describe its images. See `check.describe`."""
        self._send(("describe", num_images))
        return dict(self.answer())

    def memory_mb(self) -> float:
        """Return the memory of all its processes, in MB."""
        return memory_mb(family(self._process.pid))

    def close(self) -> None:
        """End the process and everything that it has started."""
        if self._connection.closed:
            return
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _send(self, message: object) -> None:
        with suppress(ConnectionError):  # the process has ended; `answer` reports it
            self._connection.send(message)
