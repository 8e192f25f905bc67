"""Compiled functions work if their cache cannot be found, read or written, and one line reports it."""

import errno
import importlib.util
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import pytest
from numba import types
from numba.core import caching

from penstock.pipeline import compiling

SOURCE = """
from numba import types
from penstock.pipeline.compiling import compiled, compiled_callback

@compiled()
def tripled(x):
    return 3 * x

@compiled(fastmath=True)
def plus_one(x):
    return tripled(x) + 1

def callback():
    @compiled_callback(types.int64(types.int64))
    def called(x):
        return plus_one(x)
    return called
"""
numbers = count()


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory that numba may use, not made yet."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [caching.UserProvidedCacheLocator])
    monkeypatch.setattr(compiling, "_said", [])
    monkeypatch.delenv("RANK", raising=False)
    return folder


@pytest.fixture
def load(tmp_path: Path) -> Callable[[], ModuleType]:
    """Imports the same source again, as a new process would."""
    path = tmp_path / "functions.py"
    path.write_text(SOURCE)

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"functions_{next(numbers)}", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


def check(module: ModuleType) -> None:
    assert [module.plus_one(x) for x in (0, 5, 0.5)] == [1, 16, 2.5]
    assert module.callback().ctypes(7) == 22


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_what_was_compiled_is_kept(cache_dir: Path, load: Callable[[], ModuleType], capsys: Any) -> None:
    check(load())
    again = load()
    check(again)
    assert again.plus_one.stats.cache_hits
    assert not again.plus_one.stats.cache_misses
    assert again.callback().cache_hits == 1
    assert lines(capsys) == []


def test_without_a_directory(cache_dir: Path, load: Callable[[], ModuleType], capsys: Any) -> None:
    cache_dir.write_text("a file is there: no directory can be made, even by root")
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(load().tripled.py_func)
    check(load())
    (line,) = lines(capsys)
    assert line.startswith("numba finds no directory to keep compiled code in: ")
    assert "NUMBA_CACHE_DIR" in line


def test_only_rank_0_says_so(
    cache_dir: Path, load: Callable[[], ModuleType], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir.write_text("")
    monkeypatch.setenv("RANK", "1")
    check(load())
    assert lines(capsys) == []


def test_a_directory_that_goes(cache_dir: Path, load: Callable[[], ModuleType], capsys: Any) -> None:
    module = load()
    (folder,) = cache_dir.iterdir()
    folder.rmdir()
    folder.write_text("")
    check(module)
    (line,) = lines(capsys)
    assert line.startswith(f"numba cannot keep compiled code in {folder} (Not a directory): ")


def test_a_full_disk(
    cache_dir: Path, load: Callable[[], ModuleType], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", full)
    check(load())
    (line,) = lines(capsys)
    assert "No space left on device" in line
    monkeypatch.undo()


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04\x8c\x06"])
def test_damaged_files_are_made_anew(
    ending: str, content: bytes, cache_dir: Path, load: Callable[[], ModuleType], capsys: Any
) -> None:
    check(load())
    damaged = list(cache_dir.rglob(f"*.{ending}"))
    assert damaged
    for path in damaged:
        path.write_bytes(content)
    check(load())
    again = load()
    check(again)
    assert not again.plus_one.stats.cache_misses
    assert lines(capsys) == []


def test_the_decorators_are_numbas(cache_dir: Path, load: Callable[[], ModuleType]) -> None:
    module = load()
    assert module.plus_one.targetoptions["fastmath"]
    assert module.callback()._sig == numba.cfunc(types.int64(types.int64))(module.tripled.py_func)._sig
