"""Starts `torchrun` and `python` on `train.py` in a second instead of ten: forked from a process that has it imported.

torchrun is torch's own, agent and all; only where it would start an interpreter for a rank does it fork one. The ranks
are what they would be: processes in sessions of their own, with default signal handlers, found by their ids.
"""

import atexit
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Launched:
    """A launcher, or a run without one: `pid`, and the end of it."""

    def __init__(self, process: ForkServerProcess, log: Path) -> None:
        self._process, self.log, self.pid = process, log, process.pid
        self.started = time.monotonic()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def ranks(self) -> list[int]:
        """The ids of the processes that have been started as ranks."""
        file = self.log.with_suffix(".pids")
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    def signal(self, number: signal.Signals) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int:
        """The exit code, as `subprocess` has it. Raises AssertionError, after ending all, where it takes longer."""
        self._process.join(max(timeout_s, 0.1))
        if self._process.exitcode is None:
            self.end()
            raise AssertionError(f"no end within {timeout_s:.0f} s:\n{self.output}")
        self.end()
        return self._process.exitcode

    def end(self) -> None:
        """Kill what is left: this launcher and the ranks it started, which note their ids beside the log."""
        for pid in self.ranks:
            if Path(f"/proc/{pid}/cwd").exists() and _is_ours(pid):
                os.kill(pid, signal.SIGKILL)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _is_ours(pid: int) -> bool:
    """A process id can be another's by now: ours were forked, and have their parent's command line."""
    try:
        return b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
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
    command = [
        *torchrun,
        f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}",
        "--monitor-interval=0.1",
        "--shutdown-timeout=10",
    ]
    target = (_torchrun, [*command, "train.py", *arguments]) if ranks else (_rank, arguments)
    process = _context().Process(target=_detached, args=(*target, str(log), env or {}, limits or {}))
    process.start()
    return Launched(process, log)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def _context() -> Any:
    """The processes' common parent has imported all that a run needs, and has no threads."""
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.faults.preload"])
    return context


def _detached(
    run: Callable[[list[str]], None], arguments: list[str], log: str, env: dict[str, str], limits: dict[int, int]
) -> None:
    os.chdir(ROOT)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    os.environ |= env | {"FAULT_PIDS": str(Path(log).with_suffix(".pids")), "PYTHONFAULTHANDLER": ""}
    os.setsid()
    _Forked.limits = limits
    _as_a_program(lambda: run(arguments))


def _torchrun(arguments: list[str]) -> None:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    SubprocessHandler._popen = lambda self, command, env: _Forked(command, env)  # type: ignore[assignment,method-assign]
    run.main(arguments)


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """`Popen([python, -u, train.py, *arguments], env=…, start_new_session=True)` without starting the interpreter."""

    limits: dict[int, int] = {}  # noqa: RUF012

    def __init__(self, command: tuple[str, ...], env: dict[str, str]) -> None:
        self._env = env
        super().__init__(command, start_new_session=True)

    def _execute_child(self, args: tuple[str, ...], *_: Any) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._child_created = True
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.environ.clear()
            os.environ.update(self._env)
            _as_a_program(lambda: _rank(list(args[args.index("train.py") + 1 :])))


def _rank(arguments: list[str]) -> None:
    import resource

    from tests.integration.faults import inject

    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(os.environ["FAULT_PIDS"], "a") as file:
        file.write(f"{os.getpid()}\n")
    for limit, value in _Forked.limits.items():
        resource.setrlimit(limit, (value, value))
    inject.main(arguments)


def _as_a_program(run: Callable[[], None]) -> None:
    """Run to the end of the process, as the interpreter does with a script."""
    code = 0
    try:
        run()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
