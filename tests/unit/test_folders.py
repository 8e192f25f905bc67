"""Stand-ins for missing surroundings of a program: temporary directory, home, user name."""

import errno
import getpass
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from penstock import bench, train
from penstock.shard_tools import __main__ as shard_tools_main
from penstock.shard_tools import folders, terminal
from penstock.shards.cache import Cache, cache_root
from penstock.shards.format import atomic_write


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that looks up its temporary directory again, while no candidate is a directory."""
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(file)])
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(file))
    monkeypatch.delenv("RANK", raising=False)


def test_temporary_files_go_to_shared_memory(
    nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with pytest.raises(FileNotFoundError):
        tempfile.gettempdir()
    monkeypatch.setattr(folders, "SHARED_MEMORY", tmp_path)
    folders.settle()
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(tmp_path)
    assert f"using {tmp_path}. Set TMPDIR to use another directory." in capsys.readouterr().err


def test_no_directory_at_all_is_one_line(nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "SHARED_MEMORY", tmp_path / "file")
    with pytest.raises(SystemExit, match=r"No usable temporary directory .*; set TMPDIR to a writable directory"):
        folders.settle()


def test_a_user_without_name_and_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(ValueError, match=r"no home directory .*; set data.cache_dir or XDG_CACHE_HOME"):
        cache_root()
    folders.settle()
    assert getpass.getuser() == f"uid-{os.getuid()}"
    assert Path.home() == Path("/")
    assert cache_root() == Path("/.cache/penstock")


def test_torchs_directory_for_compiled_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """torch makes it when it is imported, or does not get through."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(folders.COMPILED, str(tmp_path / "new"))
    folders.settle()
    assert (os.environ[folders.COMPILED], capsys.readouterr().err) == (str(tmp_path / "new"), "")
    monkeypatch.setenv(folders.COMPILED, str(tmp_path / "file/x"))
    folders.settle()
    assert folders.COMPILED not in os.environ
    assert capsys.readouterr().err == f"{folders.COMPILED}: {tmp_path}/file/x is not writable; ignoring it\n"


def test_what_is_there_is_left(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before = dict(os.environ), tempfile.gettempdir()
    folders.settle()
    assert (dict(os.environ), tempfile.gettempdir()) == before
    assert capsys.readouterr().err == ""
    assert logging.getLogger("matplotlib").level == logging.ERROR


def test_every_program_looks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a command does anything, and imports torch."""
    looked = []
    monkeypatch.setattr(folders, "settle", lambda: looked.append(True))

    @click.command(cls=terminal.Command)
    def command() -> None:
        assert looked

    for program in (command, train.main, bench.main, shard_tools_main.main):
        looked.clear()
        assert CliRunner().invoke(program, ["--help"]).exit_code == 0
        assert looked


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/shards: cannot be written \(Not a directory\); set data.cache_dir"):
        Cache(tmp_path / "file" / "shards")


def test_what_cannot_be_written_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the temporary file which is to become it."""

    def unlink(path: Path, missing_ok: bool = False) -> None:  # as in a read-only file system
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(FileNotFoundError) as raised, atomic_write(tmp_path / "none" / "name"):
        pass
    assert raised.value.filename == str(tmp_path / "none" / "name")
