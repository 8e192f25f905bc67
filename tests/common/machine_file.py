"""A recipe and a `machine.toml` in the test's own folder, on a machine that always looks the same."""

from pathlib import Path

import pytest

from penstock.recipes import machine

HERE = machine.Machine(cpu="Some CPU", cores=4, gpu="none", ranks=1)


def recipe_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in the current directory, on the machine HERE."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(machine, "this_machine", lambda device: HERE)
    file = folder / "recipe.toml"
    file.write_text("[data]\nthreads = 1\nprefetch = 2\nread_ahead = 3\nimage_size = 40\n")
    return file


def written(data: str, of: machine.Machine = HERE) -> None:
    section = f'cpu = "{of.cpu}"\ncores = {of.cores}\ngpu = "{of.gpu}"\nranks = {of.ranks}\n'
    Path("machine.toml").write_text(f"[machine]\n{section}[data]\n{data}")
