"""Processes as /proc shows them: a process's descendants or a session's members, their CPU time, their memory."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
PARENT, SESSION, TIMES = 1, 3, slice(11, 15)  # of `stats`


def stats(proc: Path = PROC) -> dict[int, list[str]]:
    """Process id → the fields of its /proc/ID/stat after its name, the third of proc(5) first."""
    found = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                text = (folder / "stat").read_text(errors="replace")
                found[int(folder.name)] = text.rpartition(")")[2].split()  # a name may hold ") "
    return found


def tree_root() -> int:
    """The process whose descendants are all ours: this one, or the torchrun that started its ranks."""
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()


def tree(root: int, found: dict[int, list[str]]) -> list[int]:
    """A process and its descendants, by `stats`."""
    ids = [root]
    for pid in ids:
        ids += [child for child, fields in found.items() if int(fields[PARENT]) == pid]
    return ids


def tree_ticks(root: int, proc: Path = PROC) -> int:
    """CPU ticks of a process and its descendants, those that have ended and were waited for included."""
    found = stats(proc)
    return sum(sum(map(int, found[pid][TIMES])) for pid in tree(root, found) if pid in found)


def session(number: int, proc: Path = PROC) -> list[int]:
    """The processes of a session."""
    return [pid for pid, fields in stats(proc).items() if int(fields[SESSION]) == number]


def memory_mb(pids: Iterable[int], proc: Path = PROC) -> float:
    """MB (10⁶ bytes) that processes have in memory, as proportional set size (PSS).

    A page that several of them share counts once, as does what they have mapped of files and have touched.
    """
    total = 0
    for pid in pids:
        with suppress(OSError, IndexError, ValueError):  # it has ended meanwhile, or is not ours to look at
            lines = (proc / str(pid) / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total / 1e6
