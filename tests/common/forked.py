"""Start Python programs in a tenth of a second, forked from a process that has imported torch, DALI and the rest.

`start` and `run` accept the words after `python` on a command line: a script, `-m MODULE` or `-c CODE`, and arguments.
The program has its own `sys.argv`, environment, folder and files, handles signals like a new interpreter, and leads a
session. Under `-m torch.distributed.run` the ranks are forked too. Settings that are read when torch is imported are
those of the common parent, except OMP_NUM_THREADS.
"""

import atexit
import gc
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Program(NamedTuple):
    """A program for the common parent to start: the words after `python`, and the files for its output (appended)."""

    words: list[str]
    cwd: str
    env: dict[str, str]
    stdout: str
    stderr: str


class Forked:
    """A running program, like a `subprocess.Popen`. It is killed if nobody waited for it."""

    def __init__(self, words: list[str], pid: int, stdout: Path, stderr: Path) -> None:
        self.args, self.pid, self._stdout, self._stderr = words, pid, stdout, stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _parent().ended(self.pid, 0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + (timeout or 1e9)
        while self.returncode is None:
            left = deadline - time.monotonic()
            if left < 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0, self.output)
            self.returncode = _parent().ended(self.pid, min(left, 1.0))
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait, and return its output: (stdout, stderr)."""
        self.wait(timeout)
        return self.output, self._stderr.read_text()

    @property
    def output(self) -> str:
        """Its output on stdout so far."""
        return self._stdout.read_text(errors="replace") if self._stdout.exists() else ""

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    words: Sequence[object], *, cwd: Path = ROOT, env: dict[str, str] | None = None, log: Path | None = None
) -> Forked:
    """Start `python WORDS`. `env`: all of its environment, by default this process's. `log`: the file that gets stdout
    and stderr; without it they are kept apart."""
    strings = list(map(str, words))
    stdout = stderr = log
    if stdout is None or stderr is None:
        folder = Path(tempfile.mkdtemp(prefix="forked-", dir=_parent().folder))
        stdout, stderr = folder / "stdout", folder / "stderr"
    environment = dict(os.environ if env is None else env)
    pid = _parent().fork(Program(strings, str(cwd), environment, str(stdout), str(stderr)))
    return Forked(strings, pid, stdout, stderr)


def run(
    words: Sequence[object], *, cwd: Path = ROOT, env: dict[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run([sys.executable, *words], capture_output=True, text=True, …)`. It is killed at the timeout."""
    process = start(words, cwd=cwd, env=env)
    try:
        stdout, stderr = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.wait(), stdout, stderr)


class _Parent:
    """The process that forks, seen from the process that sends requests."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="forked-")
        self.folder = self._temporary.name
        ours, its = socket.socketpair()
        command = [sys.executable, "-m", "tests.common.forked", str(its.fileno())]
        # One thread, and none that waits busily: what is forked then has the bits of a program with OMP_NUM_THREADS=1.
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, env=env, cwd=ROOT, pass_fds=[its.fileno()], start_new_session=True)
        its.close()
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        self._codes: dict[int, int] = {}
        atexit.register(self.close)

    def fork(self, program: Program) -> int:
        self._connection.send(tuple(program))
        while True:
            pid, code = self._connection.recv()
            if code is None:
                return int(pid)
            self._codes[pid] = code

    def ended(self, pid: int, timeout_s: float) -> int | None:
        """The exit code of a program, as in `subprocess`, or None if it still runs after so many seconds."""
        while pid not in self._codes and self._connection.poll(timeout_s):
            ended, code = self._connection.recv()
            self._codes[ended] = code
        return self._codes.get(pid)

    def close(self) -> None:
        self._connection.close()
        self._process.wait()
        self._temporary.cleanup()


@cache
def _parent() -> _Parent:
    return _Parent()


def serve(descriptor: int) -> None:
    """Fork the requested programs until the connection ends; then kill those that still run."""
    import tests.common.forked_imports  # noqa: F401

    gc.freeze()  # or each program's end goes through all that was imported: half a second
    connection: Connection[Any, Any] = Connection(descriptor)
    running: set[int] = set()
    while True:
        if connection.poll(0.01 if running else None):
            try:
                program = Program(*connection.recv())
            except EOFError:
                break
            signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # until the program can handle them
            pid = os.fork()
            if pid == 0:
                os.close(descriptor)
                _as_a_program(partial(_become, program))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            running.add(pid)
            connection.send((pid, None))
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                connection.send((pid, os.waitstatus_to_exitcode(status)))
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _become(program: Program) -> None:
    os.setsid()
    os.chdir(program.cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, file in ((1, program.stdout), (2, program.stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
    _interpret(program.words, program.env)


def _interpret(words: list[str], env: dict[str, str]) -> None:
    """Do what `python WORDS` does after its start."""
    import torch

    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    sys.path[1:1] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    first, *rest = words
    if first == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__ | {"__name__": "__main__"})
    elif first == "-m":
        if rest[0] == "torch.distributed.run":
            _fork_ranks()
        sys.path[0], sys.argv = str(Path.cwd()), rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(first).resolve().parent), [first, *rest]
        runpy.run_path(first, run_name="__main__")


def _fork_ranks() -> None:
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    SubprocessHandler._popen = lambda self, command, env: _Rank(command, env)  # type: ignore[assignment,method-assign]


class _Rank(subprocess.Popen):  # type: ignore[type-arg]
    """`Popen([python, -u, script, …], env=…, start_new_session=True)` without starting the interpreter."""

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
            _as_a_program(partial(_interpret, [word for word in args[1:] if word != "-u"], self._env))


def _as_a_program(run: Callable[[], None]) -> None:
    """Run to the end of the process, as the interpreter does with a script."""
    code = 0
    try:
        run()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
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


if __name__ == "__main__":
    serve(int(sys.argv[1]))
