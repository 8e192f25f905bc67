"""How a fresh interpreter starts: heavy imports come late, and the clock starts with the process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.training.budget import command_began

ROOT = Path(__file__).resolve().parents[2]


def loaded(statement: str, *modules: str) -> list[str]:
    """The modules among `modules` that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}; import sys; print(*(m for m in {modules!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_plan_loads_neither_torch_nor_dali() -> None:
    statement = "import penstock.pipeline.plan, penstock.pipeline.augment, penstock.pipeline.feed"
    assert loaded(statement, "torch", "nvidia.dali", "webdataset", "PIL", "numpy") == ["numpy"]


def test_what_is_local_loads_no_fsspec() -> None:
    statement = "import penstock.pipeline.reader, penstock.shard_tools.writer, penstock.shards.remote"
    assert loaded(statement, "fsspec", "s3fs", "aiohttp", "numpy") == ["numpy"]


def test_the_graph_loads_dali_only_when_it_is_built() -> None:
    assert loaded("import penstock.pipeline.graph", "nvidia.dali", "torch", "numpy") == ["numpy"]


HEAVY = ("torch", "torchvision", "matplotlib", "timm", "nvidia.dali", "numba", "tensorboard", "fsspec")
BENCHMARKS = ("loader", "train", "parity", "tune", "docs", "env", "explain", "peers", "plot", "record")
TOLD_EARLY = {  # what a command line is answered with before anything heavy is imported
    "train.py": {
        "--help": "Usage:",
        "eval --help": "Score a trained network",
        "predict --help": "Predict the classes",
        "export --help": "Write a trained network",
        "replay --help": "Repeat a failed step",
        "audit --help": "Prove that each epoch",
        "audit nosuch": "is not a run directory",
        "report --help": "Write report.png",
        "report nosuch": "is not a run directory",
        "--nope": "No such option",
        "evall": "No such command 'evall'. Did you mean eval?",
        "-- --nope": "No such option",
        "--recipe nosuch": "recipe 'nosuch': unknown; known recipes are",
        "--recipe rn50-90ep": "names no data",
        "--set optimizer.learning_rate=1": "unknown key optimizer.learning_rate",
        "--set optimizer.name=sdg": "'sgd'",
        "--set loss.name=mes": "'mse'",
        "--set model.name=resnet5O": "did you mean resnet50",
        "--set loss.teacher=nosuch.pt": "nosuch.pt: no such file or run",
        "--set loss.teacher=resnet18": "which weights of resnet18",
        "--max-minutes nan": "nan is not a finite number",
        "--max-minutes soon": "'soon' is not a valid number",
        "--set loss.temperature=2": "has no effect without teacher",
        "--set model.name=timm/resnet5Od": "did you mean timm/resnet50d",
        "--recipe vit-s16-90ep": "names no data",
        "--set schedule.warmup_epochs=99": "the warm-up must end",
        "--data nosuch": "nosuch: no packed dataset",
        "--resume nosuch": "no checkpoint there",
        "--run-dir README.md/x": "is not a directory",
        "--show-schedule": "learning rate",
        "predict nosuch.pt .": "no such checkpoint",
        "eval . --labels nosuch": "no such file; give real.json",
        "eval . --labels real --only-data-classes": "omit --only-data-classes",
    },
    "bench.py": {
        "--help": "Usage:",
        **{f"{name} --help": "Usage:" for name in BENCHMARKS},
        "loader --nope": "No such option",
        "loader --seconds nan": "nan is not a finite number",
        "tune --turn inf": "inf is not a finite number",
        "explan": "No such command 'explan'. Did you mean explain?",
        "loader --recipe nosuch": "recipe 'nosuch': unknown; known recipes are",
        "tune --set a.b=1": "unknown key a.b",
        "explain --data nosuch": "nosuch: no packed dataset",
    },
    "shard_tools": {"--help": "Usage:", "pack --help": "Usage:", "pack nosuch out": "nosuch", "info nosuch": "nosuch"},
    "penstock": {"trian": "No such command 'trian'. Did you mean train?"},
    "benchmarks.gpu": {"--help": "Usage:", "--nope": "No such option", "chekc": "is not one of"},
}


CALL = """
import runpy, sys
sys.path[0], program = ".", sys.argv[1]
sys.argv = [program, *sys.argv[2:]]
try:
    runpy.run_path(program, run_name="__main__") if ".py" in program else runpy.run_module(program, run_name="__main__")
finally:
    loaded = [name for name in %r if name in sys.modules]
    print("loaded", *loaded, flush=True)
"""


@pytest.mark.parametrize("program", TOLD_EARLY)
def test_help_and_what_is_misspelt_take_nothing_heavy(program: str) -> None:
    for words, expected in TOLD_EARLY[program].items():
        command = [sys.executable, "-c", CALL % (HEAVY,), program, *words.split()]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert expected in done.stdout + done.stderr, (words, done.stderr)
        assert done.stdout.splitlines()[-1] == "loaded", (words, done.stdout)
        assert "Traceback" not in done.stderr
        assert (done.returncode != 0) == (done.stderr != ""), words


def test_it_is_light() -> None:
    code = "import penstock.shard_tools.folders, sys; print(*{'torch', 'numpy', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_clock_starts_with_the_process() -> None:
    code = f"import sys, time; time.sleep(0.5); sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from training.budget import command_began; print(time.perf_counter() - command_began())"
    began = time.perf_counter()
    env = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RESTART_COUNT"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert 0.5 <= float(done.stdout) <= time.perf_counter() - began + 0.02
    assert command_began() <= time.perf_counter()
