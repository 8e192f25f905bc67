"""What a container may lack and libraries expect: a directory for temporary files, a home, a name of the user.

Every program sees to them first (`terminal.prepare`), before torch: importing that already ends in an error where there
is no directory for temporary files, or where the user id has no name.
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
    """Set the variables of the environment that stand in for what is missing, for this process and those it starts.

    A home that cannot be found becomes `/`, as in containers; one that cannot be written is left as it is. Of a
    directory for temporary files elsewhere than expected a line tells.

    Raises:
        SystemExit: none is writable.
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
            sys.exit(f"Error: {error.strerror}: set TMPDIR to a directory that can be written")
        os.environ["TMPDIR"] = tempfile.tempdir = str(SHARED_MEMORY)
        if os.environ.get("RANK", "0") == "0":
            print(f"{error.strerror}: {SHARED_MEMORY} is used; TMPDIR names another", file=sys.stderr)
    named = os.environ.get(COMPILED, "")
    if named and not _can_be_used(Path(named)):
        del os.environ[COMPILED]
        if os.environ.get("RANK", "0") == "0":
            print(f"{COMPILED}: {named} cannot be written, and is not used", file=sys.stderr)
    # That its settings are in a directory for temporary files changes no picture
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _is_writable(folder: Path) -> bool:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _can_be_used(folder: Path) -> bool:
    """Whether it is there, or could be made, and can be written; writes nothing in it, as torch sets the variable for
    the processes that it starts."""
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
