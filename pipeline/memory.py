"""The memory that this process may still use, by the kernel's estimate and its control groups' limits."""

from contextlib import suppress
from pathlib import Path

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_bytes(meminfo: Path = Path("/proc/meminfo"), root: Path = GROUPS, own: Path = OWN) -> int:
    """The bytes that can be used without swapping, and without exceeding the limit of a control group. A group's file
    cache does not count as used, since the kernel frees it on demand."""
    free = [1 << 62]  # if neither has a limit
    with suppress(OSError):
        lines = meminfo.read_text(encoding="utf-8").splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for folder in cgroup_folders(root, own, "memory"):
        for limit, kept in (("memory.max", "anon"), ("memory.limit_in_bytes", "total_rss")):
            with suppress(OSError, ValueError):  # "max": none
                most = int((folder / limit).read_text(encoding="utf-8"))
                stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
                free.append(max(0, most - int(stat.get(kept, 0)) - int(stat.get("shmem", 0))))
    return min(free)


def cgroup_folders(root: Path = GROUPS, own: Path = OWN, controller: str = "cpu") -> list[Path]:
    """Folders of this process's control group and its parents: of version 2, and of version 1 for one controller."""
    found: list[Path] = []
    with suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            controllers, _, path = line.partition(":")[2].partition(":")
            if controllers and controller not in controllers.split(","):
                continue
            base = root / controller if controllers else root
            group = base / path.strip("/")
            found += [folder for folder in (group, *group.parents) if folder.is_relative_to(base) and folder.is_dir()]
    return found
