"""Start `torchrun` and `python` on a run with faults (`inject.py`), forked. torchrun is torch's own."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.common import forked

RANK = Path(__file__).with_name("inject.py")  # `train.py` and what goes wrong in it


class Launched:
    """A launcher, or a run without one: `pid`, and the end of it."""

    def __init__(self, process: forked.Forked, log: Path) -> None:
        self._process, self.log, self.pid = process, log, process.pid
        self.started = time.monotonic()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        return self._process.output

    @property
    def ranks(self) -> list[int]:
        """The ids of the processes that have been started as ranks."""
        file = self.log.with_suffix(".pids")
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int:
        """The exit code, as in `subprocess`. On a time-out it ends everything and raises AssertionError."""
        try:
            return self._process.wait(max(timeout_s, 0.1))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {timeout_s:.0f} s:\n{self.output}") from None
        finally:
            self.end()

    def end(self) -> None:
        """Kill the remaining processes: this launcher and its ranks, which write their ids beside the log."""
        for pid in self.ranks:
            if Path(f"/proc/{pid}/cwd").exists() and _is_ours(pid):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()


def _is_ours(pid: int) -> bool:
    """Whether the process is still ours. Ids are reused, but our processes have their parent's command line."""
    try:
        return b"tests.common.forked" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def launch(
    arguments: list[str], log: Path, *, ranks: int = 1, restarts: int = 0, env: dict[str, str] | None = None,
    limits: dict[int, int] | None = None, torchrun: tuple[str, ...] = ("--standalone",),
) -> Launched:  # fmt: skip
    """Start `train.py ARGUMENTS` under torchrun with its options `torchrun`, or with ranks=0 without.

    `log` gets all output. `limits`: `resource.RLIMIT_…` → value, for the ranks.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    launcher = [
        *("-m", "torch.distributed.run", *torchrun),
        f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}",
        "--monitor-interval=0.1",
        "--shutdown-timeout=10",
    ]
    of_ranks = {"FAULT_PIDS": str(log.with_suffix(".pids")), "FAULT_LIMITS": json.dumps(list((limits or {}).items()))}
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""} | (env or {}) | of_ranks
    return Launched(forked.start([*(launcher if ranks else []), RANK, *arguments], env=env, log=log), log)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port
