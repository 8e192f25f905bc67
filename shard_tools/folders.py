"""Replace what libraries expect but a container may lack: a temporary directory, a home directory, a user name.

Every program does this first (`terminal.prepare`), before it imports torch: the import of torch fails if there is no
directory for temporary files, or if the user id has no name.
"""

import getpass
import logging
import os
import sys
import tempfile
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # a variable whose directory torch makes when it is imported


def settle() -> None:
    """Set environment variables that replace what is missing, for this process and the processes that it starts.

    A missing home directory becomes `/`, as in containers; one that is not writable stays as it is. If temporary files
    go to another directory than usual, a line on stderr names it.

    Raises:
        SystemExit: no directory for temporary files is writable.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"
    try:
        tempfile.gettempdir()
    except OSError as error:
        if not _is_writable(SHARED_MEMORY):
            sys.exit(f"Error: {error.strerror}; set TMPDIR to a writable directory")
        os.environ["TMPDIR"] = tempfile.tempdir = str(SHARED_MEMORY)
        if os.environ.get("RANK", "0") == "0":
            print(f"{error.strerror}; using {SHARED_MEMORY}. Set TMPDIR to use another directory.", file=sys.stderr)
    named = os.environ.get(COMPILED, "")
    if named and not _can_be_used(Path(named)):
        del os.environ[COMPILED]
        if os.environ.get("RANK", "0") == "0":
            print(f"{COMPILED}: {named} is not writable; ignoring it", file=sys.stderr)
    # Matplotlib warns if its settings are in a temporary directory, but that does not affect plots
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _is_writable(folder: Path) -> bool:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _can_be_used(folder: Path) -> bool:
    """Whether the directory exists or could be created, and is writable. Does not write to it, because torch sets the
    variable for the processes that it starts."""
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
