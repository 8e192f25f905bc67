"""Detect forbidden behaviour of the program from outside: a `with` block that raises a Violation.

Every file that Python opens, renames or removes, and every pickle, process and connection, passes `sys.addaudithook`.
An alarm limits the time, and RLIMIT_AS limits the memory. So a case needs no expected result: it may succeed, or fail
with one of `EXPECTED`. Everything else is a defect.
"""

import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[3]
EXPECTED = (ValueError, click.ClickException)
LIMIT_S = 5.0  # of the processor's time
BLOCKED = 8  # times that, by the clock
MEMORY_BYTES = 1 << 30  # beyond what the process has already
# A reader that believed a header and asked for the memory would say so in its message.
ALLOCATED = re.compile("unable to allocate|can't allocate|cannot allocate|memoryerror|bad_alloc|out of memory", re.I)
READABLE = tuple(
    f"{os.path.realpath(path)}{os.sep}" for path in (ROOT, sys.prefix, sys.base_prefix, "/proc", "/usr", "/sys")
)
DEVICES = ("/dev/null", "/dev/urandom", "/etc/localtime", "/etc/mime.types", "/etc/apache2/mime.types")
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
           "os.utime", "shutil.rmtree", "shutil.copyfile", "shutil.move"}  # fmt: skip
FORBIDDEN = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
             "socket.connect", "socket.bind"}  # fmt: skip


class Violation(AssertionError):
    """The program did something that no input may cause."""


class Hang(BaseException):
    """A case exceeded its time limit. Not an Exception, so that the program's `except Exception` does not catch it."""


_folder: str | None = None  # of the case under way
_found: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _folder is None:
        return
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, str | bytes):
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)) if mode is None else (
                bool(set(mode) & set("wax+"))
            )  # fmt: skip
            _check(path, "written" if writes else "read")
    elif event in CHANGES:
        for path in arguments[: 2 if event in ("os.rename", "os.link", "shutil.copyfile", "shutil.move") else 1]:
            if isinstance(path, str | bytes):
                _check(path, "changed", follow=False)
    elif event in FORBIDDEN:
        _found.append(f"{event} {arguments!r}"[:300])


def _check(path: str | bytes, what: str, follow: bool = True) -> None:
    assert _folder is not None
    text = os.fsdecode(path)
    try:  # what is renamed or removed is the link itself
        real = os.path.realpath(text) if follow else str(Path(text).parent.resolve() / Path(text).name)
    except (OSError, ValueError):
        return  # no such path can be opened
    inside = f"{real}{os.sep}".startswith(f"{_folder}{os.sep}")
    compiled = "__pycache__" in real  # Python's modules and Numba's functions
    if inside or real in DEVICES or ((what == "read" or compiled) and f"{real}{os.sep}".startswith(READABLE)):
        return
    _found.append(f"{real} was {what}")


_hooked = False


@contextmanager
def watched(folder: Path, limit_s: float = LIMIT_S) -> Iterator[None]:
    """Run a case that may access only `folder`.

    Raises:
        Violation: it raised something that is not EXPECTED, opened a file elsewhere, ran a pickle or a program, took
            longer than `limit_s` or asked for memory without bounds. EXPECTED errors end the case quietly.
    """
    global _folder, _hooked
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    problem: str | None = None
    cause: BaseException | None = None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = {number: signal.signal(number, _alarm) for number in (signal.SIGPROF, signal.SIGALRM)}
    cwd, tempdir = Path.cwd(), tempfile.tempdir
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    resource.setrlimit(resource.RLIMIT_AS, (_virtual_bytes() + MEMORY_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, limit_s)  # the processor's time, so that a busy machine changes nothing
    signal.setitimer(signal.ITIMER_REAL, BLOCKED * limit_s)
    _folder = os.path.realpath(folder)
    try:
        yield
    except EXPECTED as error:
        problem = f"unbounded allocation: {error}" if ALLOCATED.search(_text(error)) else None
    except Hang as error:
        problem, cause = f"took longer than {limit_s} s", error
    except Violation:
        raise
    except Exception as error:
        problem, cause = f"{type(error).__name__}: {_text(error)}", error
    finally:
        _folder = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        tempfile.tempdir = tempdir
        os.chdir(cwd)
        found, _found[:] = list(_found), []
    if found or problem:
        raise Violation("; ".join([*found[:3], *([problem] if problem else [])])[:2000]) from cause


def one_line(text: str) -> None:
    """Check the output of a failed command: its error takes one line, without a traceback."""
    if "Traceback" in text:
        raise Violation(f"a traceback: {text[-1500:]}")
    if ALLOCATED.search(text):
        raise Violation(f"unbounded allocation: {text[-500:]}")


def _text(error: BaseException) -> str:
    return str(error.message if isinstance(error, click.ClickException) else error)


def _alarm(number: int, frame: FrameType | None) -> None:
    raise Hang


def _virtual_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
