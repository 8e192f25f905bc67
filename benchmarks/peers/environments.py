"""`--setup`: a virtual environment for each peer whose package the project does not have; and which Python runs which.

Their requirements exclude each other and ours, so each has its own, FOLDER/NAME, made by uv.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.peers.registry import PEERS, adapter_of, requirements

LAST_LINES = 3  # of uv's complaint that are shown


def python_of(name: str, folder: Path) -> Path:
    """The interpreter that runs a peer, whether or not it is there yet."""
    return folder / adapter_of(name) / "bin" / "python" if requirements(name) else Path(sys.executable)


def how_to_install(name: str) -> str:
    """A line for people."""
    needs = f" (needs {PEERS[name].system})" if PEERS[name].system else ""
    if requirements(name):
        return f"install it with: python bench.py peers --setup --only {name}{needs}"
    return f"install it with: uv pip install {PEERS[name].package}{needs}"


def set_up(names: Sequence[str], folder: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Make the environments, anew where they are there already. Returns what failed: peer → the end of uv's complaint.

    Raises ValueError where uv is missing.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise ValueError("uv is not installed, which makes the environments; install it with: pip install uv")
    failed: dict[str, str] = {}
    done: dict[str, str] = {}  # of an adapter: two peers may share one
    for name in names:
        wanted = requirements(name)
        if wanted is None:
            say(f"{name}: runs in the project's own environment")
            continue
        adapter = adapter_of(name)
        if adapter not in done:
            done[adapter] = _make(uv, python_of(name, folder), wanted)
        if done[adapter]:
            failed[name] = done[adapter]
        say(
            f"{name}: {'not installed: ' + done[adapter] if done[adapter] else 'installed in ' + str(folder / adapter)}"
        )
    return failed


def _make(uv: str, python: Path, wanted: Path) -> str:
    """An empty line, or what went wrong."""
    environment = python.parents[1]
    environment.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)],
        [uv, "pip", "install", "--quiet", "--python", str(python), "--requirement", str(wanted)],
    ):
        result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
        if result.returncode:
            lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
            return " ".join(lines[-LAST_LINES:]) or f"uv exited with {result.returncode}"
    return ""
