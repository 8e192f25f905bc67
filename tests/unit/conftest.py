"""Keep unit tests small: one that starts a process, packs shards or reads the packed dataset fails."""

import multiprocessing.process
import os
import subprocess
from typing import NoReturn

import pytest

import penstock.shard_tools.writer


@pytest.fixture(autouse=True)
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "image_tree" in request.fixturenames:  # what the fixtures of the packed dataset are made of
        pytest.fail("a test in tests/unit reads no packed dataset: those in pipeline and system do")

    def refuse(*_: object, **__: object) -> NoReturn:
        pytest.fail("a test in tests/unit starts no process and packs nothing: those in pipeline and system do")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(penstock.shard_tools.writer, "run_shards", refuse)
