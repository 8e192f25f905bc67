"""Commands on terminals with fewer characters and in pipes that close, in real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import click, sys, warnings
from rich.console import Console
from penstock.shard_tools import terminal

@click.command(cls=terminal.Command)
@click.option("--lines", default=1)
def main(lines):
    warnings.warn_explicit("Corrupt EXIF data", UserWarning, "TiffImagePlugin.py", 1, "PIL.TiffImagePlugin")
    for _ in range(lines):
        click.echo("echo … 猫 \\udcff é")
        Console().print("rich … 猫 \\udcff é")
        print("print … 猫 \\udcff é")
    raise click.ClickException("error … 猫 \\udcff é")

main()
"""
LOCALES = {
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "strict UTF-8": {"PYTHONIOENCODING": "utf-8:strict"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
SHOWN = {
    "Latin-1": "... \\u732b \\xff é".encode("latin-1"),
    "ASCII": b"... \\u732b \\xff \\xe9",
    "strict UTF-8": "… 猫 \\xff é".encode(),
    "C": b"... \\u732b \\xff \\xe9",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("program") / "program.py"
    file.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r}){PROGRAM}", encoding="utf-8")
    return str(file)


def environment(name: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "PYTHON"))} | LOCALES[name]


@pytest.mark.parametrize("name", LOCALES)
def test_what_a_terminal_lacks_is_replaced(name: str, program: str) -> None:
    done = subprocess.run([sys.executable, program], cwd=ROOT, env=environment(name), capture_output=True)
    assert done.stdout.splitlines() == [what + b" " + SHOWN[name] for what in (b"echo", b"rich", b"print")]
    assert done.stderr == b"Error: error " + SHOWN[name] + b"\n"
    assert done.returncode == 1


@pytest.mark.parametrize("shell", ["| head -1", "| true", "2>&1 | head -1", ">/dev/full", ">&-"])
def test_output_that_cannot_be_written_is_no_traceback(shell: str, program: str) -> None:
    """`true` reads nothing, /dev/full is a full disk, >&- is closed from the start."""
    command = f'"$0" "$1" --lines 9999 {shell}'
    done = subprocess.run(["bash", "-c", command, sys.executable, program], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert (">/dev/full" in shell) == ("No space left on device" in done.stderr)
    assert done.stdout.count("\n") == ("head" in shell)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_from_the_start_is_dev_null(closed: str, tmp_path: Path) -> None:
    """Otherwise `sys.stdout.isatty()` raises an error, and library output goes into the file that is opened next."""
    code = (
        f"import os, subprocess, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from shard_tools import terminal; terminal.prepare()\n"
        "sys.stdout.isatty(), sys.stderr.isatty(), sys.stdin.read()\n"
        "file = open('kept', 'wb', buffering=0)\n"
        "subprocess.run('echo out; echo err >&2', shell=True)\n"
        "file.write(b'%d' % (file.fileno() > 2))\n"
    )
    command = f'"$0" -c "$1" {closed}'
    done = subprocess.run(["bash", "-c", command, sys.executable, code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept").read_bytes() == b"1"


def test_a_command_on_a_latin_1_terminal_packs_and_says_so(image_tree: Path, tmp_path: Path) -> None:
    odd = tmp_path / "katze-猫"
    (odd / "train").parent.mkdir()
    (odd / "train").symlink_to(image_tree / "train")
    command = [sys.executable, "-m", "shard_tools", "pack", str(odd), str(tmp_path / "out…"), "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment("Latin-1"), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"out...: 3 classes" in done.stdout
