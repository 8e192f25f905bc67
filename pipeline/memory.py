"""How much memory this process may still take: by the kernel's estimate, and by what its control groups allow."""

from contextlib import suppress
from pathlib import Path

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_bytes(meminfo: Path = Path("/proc/meminfo"), root: Path = GROUPS, own: Path = OWN) -> int:
    """Memory that can be used without swapping, and without a control group of this process ending it. A group's file
    cache is not counted as used: the kernel gives it up."""
    free = [1 << 62]  # where neither says anything
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
    """The folders of this process's control group and of those above it, of version 2 and, for one controller, of
    version 1."""
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
