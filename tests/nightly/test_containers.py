"""A container with the project read-only and a home that cannot be written: train, eval, predict and bench run there.

The mounts need a namespace of their own. The tests are skipped on machines that do not allow one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOUNTS = """
set -e
mount --make-rprivate /
for folder in "$PROJECT" "$HOME"; do mount --bind "$folder" "$folder"; mount -o remount,bind,ro "$folder"; done
cd "$PROJECT"
if touch "$HOME/x" 2>/dev/null; then exit 77; fi
exec "$@"
"""
SMALL = ("--device", "cpu", "--image-size", "32", "--batch-size", "24")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home directory that programs in a container cannot write to."""
    home = tmp_path_factory.mktemp("home")
    try:
        tried = contained(home, "true")
    except OSError as error:
        pytest.skip(f"no namespaces here: {error}")
    if tried.returncode:
        pytest.skip(f"no read-only mounts here: {tried.stderr.strip()}")
    return home


def contained(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "NUMBA_", "MPL"))}
    environment = kept | {"PROJECT": str(ROOT), "HOME": str(home)}
    whole = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount", "bash", "-c", MOUNTS, "box"]
    return subprocess.run([*whole, *command], env=environment, capture_output=True, text=True, check=False)


def run(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    done = contained(home, sys.executable, *command)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(home.iterdir())
    return done


@pytest.fixture(scope="module")
def trained(home: Path, dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = ("train.epochs=1", "schedule.warmup_epochs=0", "train.global_batch_size=30", "data.image_size=32")
    sets = [word for setting in settings for word in ("--set", setting)]
    data = ("--data", str(dataset_dir), "--device", "cpu")
    done = run(home, "train.py", *data, "--recipe", "demo", "--run-dir", str(out), *sets)
    assert "on 19/19 images" in done.stdout
    lines = [line for line in done.stderr.splitlines() if "NUMBA_CACHE_DIR" in line]
    assert len(lines) == 1
    assert lines[0].startswith("numba finds no directory to keep compiled code in: ")
    assert "atplotlib" not in done.stdout + done.stderr
    return out


def test_train(trained: Path) -> None:
    assert (trained / "report.html").is_file()


@pytest.mark.long
def test_eval_predict_and_bench(home: Path, trained: Path, dataset_dir: Path, image_tree: Path) -> None:
    assert "19 images" in run(home, "train.py", "eval", str(trained)).stdout
    assert "class2" in run(home, "train.py", "predict", str(trained), str(image_tree / "val/class0")).stdout
    timed = run(home, "bench.py", "loader", "--data", str(dataset_dir), *SMALL, "--seconds", "0.1", "--repeats", "1")
    assert "images/s" in timed.stdout
