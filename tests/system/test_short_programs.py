"""Tests that need their own process: its end, a bus error, a limit, or permanent settings."""

import mmap
import os
from pathlib import Path

import pytest

from penstock.training import environment
from penstock.training.watchdog import EXIT_CODE
from tests.common import forked


def test_by_default_it_ends_the_process_with_its_code() -> None:
    code = (
        "import time, torch; from training.distributed import World; from training.watchdog import Watchdog\n"
        "with Watchdog(World(0, 0, 1, 1, torch.device('cpu')), 0.2) as watch:\n"
        "    watch.begin('training', 5)\n"
        "    time.sleep(60)\n"
    )
    done = forked.run(["-c", code], timeout=200)
    assert done.returncode == EXIT_CODE == os.EX_TEMPFAIL
    assert done.stderr.count("\n") == 1
    assert "in step 5: training; the same command resumes" in done.stderr


@pytest.mark.parametrize("cut", [True, False])
def test_a_shard_that_is_cut_while_it_is_read_is_named(cut: bool, tmp_path: Path) -> None:
    whole, other = tmp_path / "other.tar", tmp_path / "train-000001.tar"
    for path in (whole, other):
        path.write_bytes(bytes(3 * mmap.PAGESIZE))
    code = (
        "import mmap, os, sys, threading; from pathlib import Path; from pipeline import bus_error\n"
        "maps = []\n"
        "for name in sys.argv[1:]:\n"
        "    maps.append(mmap.mmap(os.open(name, os.O_RDONLY), 0, access=mmap.ACCESS_READ))\n"
        "    bus_error.explain(Path(name), len(maps[-1]))\n"
        f"if {cut}: os.truncate(sys.argv[-1], 100)\n"
        "thread = threading.Thread(target=lambda: bytes(maps[-1]))\n"
        "thread.start()\n"
        "thread.join()\n"
        "print('read')\n"
    )
    done = forked.run(["-c", code, whole, other], timeout=200)
    if cut:
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"Error: {other}: this shard was cut from {3 * mmap.PAGESIZE} to 100 bytes")
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")


UNWRITABLE = """
import resource, sys
from pathlib import Path
from penstock.training.trackers import TensorBoard

resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
board = TensorBoard(Path(sys.argv[1]))
for step in range(300):
    board.scalars({"loss": 1.0, "lr": 0.1}, step)
board.close()
print("went on")
"""


def test_a_run_goes_on_without_tensorboard_where_its_file_cannot_be_written(tmp_path: Path) -> None:
    done = forked.run(["-c", UNWRITABLE, tmp_path], timeout=60)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
    ours = [line for line in done.stderr.splitlines() if "warn" not in line.lower()]
    assert ours == [f"{tmp_path}/tensorboard: File too large; no more TensorBoard curves, but metrics.jsonl has them"]


def test_deterministic_kernels_have_cublas_workspace() -> None:
    """In a process of its own: cuBLAS reads the variable once."""
    code = "import os, torch; from training import environment; environment.choose_kernels(deterministic=True)\n"
    code += "print(os.environ['CUBLAS_WORKSPACE_CONFIG'], torch.backends.cudnn.benchmark, "
    code += "torch.are_deterministic_algorithms_enabled())"
    env = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    done = forked.run(["-c", code], env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [":4096:8", "False", "True"]
    assert environment.choose_kernels.__defaults__ == (False,)
