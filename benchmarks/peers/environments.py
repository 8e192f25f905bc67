"""The environment of each peer: the project's, or its own in FOLDER/ADAPTER, which `--setup` creates with uv."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from penstock.benchmarks.peers.registry import PEERS

REQUIREMENTS = Path(__file__).with_name("requirements")  # of ADAPTER.txt; without one the project's environment is used
LAST_LINES = 3  # of uv's error message that are shown


def requirements(name: str) -> Path | None:
    """Return the requirements file of a peer's own environment. The peers' requirements conflict with each other."""
    path = REQUIREMENTS / f"{PEERS[name].adapter}.txt"
    return path if path.exists() else None


def python_of(name: str, folder: Path) -> Path:
    """Return the interpreter that runs a peer, whether or not it exists yet."""
    return folder / PEERS[name].adapter / "bin" / "python" if requirements(name) else Path(sys.executable)


def how_to_install(name: str) -> str:
    """Return the instruction to install a peer."""
    by_setup = f"python bench.py peers --setup --only {name}"
    return f"Install it with: {by_setup if requirements(name) else f'uv pip install {PEERS[name].package}'}"


def set_up(names: Sequence[str], folder: Path, say: Callable[[str], None]) -> list[str]:
    """Create the environments, and replace existing ones. Returns the adapters that could not be installed.

    Raises ValueError if uv is missing.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise ValueError("uv is not installed, but --setup needs it. Install it with: pip install uv")
    failed = []
    for adapter, name in {PEERS[name].adapter: name for name in names}.items():
        if (wanted := requirements(name)) is None:
            say(f"{adapter}: runs in the project's own environment")
            continue
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder / adapter)],
            [uv, "pip", "install", "--quiet", "--python", str(python_of(name, folder)), "--requirement", str(wanted)],
        ):
            ran = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
            if ran.returncode:
                lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()][-LAST_LINES:]
                say(f"{adapter}: not installed: {' '.join(lines) or f'uv exited with {ran.returncode}'}")
                failed.append(adapter)
                break
        else:
            say(f"{adapter}: installed in {folder / adapter}")
    return failed
