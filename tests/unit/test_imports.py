"""Imports go one way (CONTRIBUTING.md), read from the sources with `ast`, and heavy ones come late."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shards", "pipeline", "model", "recipes", "shard_tools", "training", "commands", "benchmarks")
SCRIPTS = ("train", "bench", "tests")
COMMON = "settings"  # which every package may import
# what a package may import of the project's own, besides itself: those before it
ALLOWED = {package: PACKAGES[:place] for place, package in enumerate(PACKAGES)}
ALLOWED["model"] = ()  # knows no data
ALLOWED["shard_tools"] = ("shards", "pipeline", "recipes")
ALLOWED["benchmarks"] = (*ALLOWED["benchmarks"], "tests.integration")


class Import(NamedTuple):
    module: str  # dotted, absolute; for `from a import b` both `a` and `a.b` are given
    at_import: bool  # runs when the file is imported: not inside a function
    line: int


def imports_of(path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import():
                    for alias in child.names:
                        yield Import(alias.name, at_import, child.lineno)
                case ast.ImportFrom():
                    package = path.relative_to(ROOT).parent.parts
                    start = [*package[: len(package) - child.level + 1]] if child.level else []
                    base = ".".join([*start, *([child.module] if child.module else [])])
                    yield Import(base, at_import, child.lineno)
                    for alias in child.names:
                        yield Import(f"{base}.{alias.name}", at_import, child.lineno)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    yield from walk(child, False)
                case _:
                    yield from walk(child, at_import)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def sources() -> list[Path]:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [*files, *(ROOT / f"{name}.py" for name in ("train", "bench", COMMON))]


def within(module: str, *names: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


FILES = {str(path.relative_to(ROOT)): list(imports_of(path)) for path in sources()}
TRAINER = {file: imports for file, imports in FILES.items() if not file.startswith("benchmarks/")}  # peers are others'


def test_the_parser_sees_what_is_there() -> None:
    assert {"pipeline/plan.py", "pipeline/graph.py", "shards/format.py", "train.py"} <= set(FILES)
    modules = {i.module for i in FILES["pipeline/loader.py"]}
    assert {"numpy", "pipeline.graph", "pipeline.reader", "pipeline.graph.build_graph"} <= modules
    assert Import("nvidia.dali", False, 0).module in {i.module for i in FILES["pipeline/graph.py"]}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    own = (*PACKAGES, *SCRIPTS)
    for file, imports in FILES.items():
        if not file.startswith(f"{package}/"):
            continue
        for found in imports:
            if within(found.module, *own) and not within(found.module, package):
                # `import shards.format` and `from shards.format import x`, never shard_tools alone
                assert within(found.module, *ALLOWED[package]), f"{file}:{found.line} imports {found.module}"


def test_what_every_package_may_import_imports_none() -> None:
    tops = {found.module.partition(".")[0] for found in FILES[f"{COMMON}.py"]}
    assert tops <= sys.stdlib_module_names | {"_typeshed"}  # stubs that only mypy reads


def test_only_the_graph_imports_dali_and_only_inside_functions() -> None:
    users = {file for file, imports in TRAINER.items() for i in imports if within(i.module, "nvidia")}
    assert users <= {"pipeline/graph.py", "pipeline/probe.py", "pipeline/resize.py", "pipeline/augment/graph.py"}
    for file in users:
        for found in FILES[file]:
            assert not (found.at_import and within(found.module, "nvidia")), f"{file}:{found.line}"


def test_only_distributed_and_train_touch_torch_distributed() -> None:
    allowed = {"training/distributed.py", "train.py"}
    users = {file for file, imports in TRAINER.items() for i in imports if within(i.module, "torch.distributed")}
    assert users <= allowed
    for file in set(TRAINER) - allowed:  # nor by attribute
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "distributed" and isinstance(node.value, ast.Name):
                assert node.value.id != "torch", f"{file}:{node.lineno}"


EXECUTED = ("pipeline/augment/graph.py", "pipeline/augment/reference.py")  # the plan, by DALI and by PIL
AUGMENT = sorted(file for file in FILES if file.startswith("pipeline/augment/") and file not in EXECUTED)


@pytest.mark.parametrize("file", ["pipeline/plan.py", *AUGMENT, "pipeline/config.py", "pipeline/feed.py"])
def test_the_plan_is_numpy_alone(file: str) -> None:
    for found in FILES[file]:
        top = found.module.partition(".")[0]
        assert top in {"numpy", "pipeline", "shards", COMMON} or top in sys.stdlib_module_names, (
            f"{file}:{found.line} imports {found.module}"
        )


def loaded(statement: str, *modules: str) -> list[str]:
    """Which of `modules` a fresh interpreter has loaded after `statement`."""
    code = f"{statement}; import sys; print(*(m for m in {modules!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_plan_loads_neither_torch_nor_dali() -> None:
    statement = "import pipeline.plan, pipeline.augment, pipeline.feed, shards.format"
    assert loaded(statement, "torch", "nvidia.dali", "webdataset", "PIL", "numpy") == ["numpy"]


def test_what_is_local_loads_no_fsspec() -> None:
    statement = "import pipeline.reader, shard_tools.writer, shards.remote"
    assert loaded(statement, "fsspec", "s3fs", "aiohttp", "numpy") == ["numpy"]


def test_the_graph_loads_dali_only_when_it_is_built() -> None:
    assert loaded("import pipeline.graph", "nvidia.dali", "torch", "numpy") == ["numpy"]


HEAVY = ("torch", "torchvision", "matplotlib", "timm", "nvidia.dali", "numba", "tensorboard", "fsspec")
BENCHMARKS = ("loader", "train", "parity", "tune", "env", "explain", "peers", "plot")
TOLD_EARLY = {  # what a command line is answered with before anything heavy is imported
    "train.py": {
        "--help": "Usage:",
        "eval --help": "Score CHECKPOINT",
        "predict --help": "Name the classes",
        "export --help": "Write a trained network",
        "replay --help": "Make a failed step again",
        "audit --help": "Prove from the metrics",
        "audit nosuch": "is not a run directory",
        "report --help": "Write report.png",
        "report nosuch": "is not a run directory",
        "--nope": "No such option",
        "evall": "No such command",
        "--recipe nosuch": "recipe 'nosuch': there are",
        "--recipe rn50-90ep": "names no data",
        "--set optimizer.learning_rate=1": "unknown key optimizer.learning_rate",
        "--set optimizer.name=sdg": "'sgd'",
        "--set loss.name=mes": "'mse'",
        "--set model.name=resnet5O": "did you mean resnet50",
        "--set schedule.warmup_epochs=99": "the warm-up must end",
        "--data nosuch": "nosuch: no packed dataset",
        "--resume nosuch": "no checkpoint there",
        "--run-dir README.md/x": "is no directory",
        "--show-schedule": "learning rate",
        "predict nosuch.pt .": "no such checkpoint",
    },
    "bench.py": {
        "--help": "Usage:",
        **{f"{name} --help": "Usage:" for name in BENCHMARKS},
        "loader --nope": "No such option",
        "loader --recipe nosuch": "recipe 'nosuch': there are",
        "tune --set a.b=1": "unknown key a.b",
        "explain --data nosuch": "nosuch: no packed dataset",
    },
    "shard_tools": {"--help": "Usage:", "pack --help": "Usage:", "pack nosuch out": "nosuch", "info nosuch": "nosuch"},
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
