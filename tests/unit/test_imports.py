"""Imports go one way (CONTRIBUTING.md), read from the sources with `ast`, and heavy ones come late."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shard_tools", "pipeline", "model", "training", "engine")
SCRIPTS = ("train", "bench", "recipes", "tests")
# what a package may import of the project's own, besides itself
SHARED = (
    "shard_tools.format",
    "shard_tools.permutation",
    "shard_tools.remote",
    "shard_tools.cache",
    "shard_tools.compiling",
)
ALLOWED = {
    "shard_tools": (),
    "pipeline": SHARED,
    "model": (),
    "training": (),
    "engine": ("shard_tools", "pipeline", "model", "training", "recipes"),  # all but the scripts
}
# who looks elsewhere, inside functions: `preview --augment` at training, the audit of a run at the plan
EXCEPTIONS = {
    "shard_tools/preview.py": ("pipeline.feed", "pipeline.loader", "recipes", "training.config"),
    "training/audit.py": ("pipeline.feed", "pipeline.plan", "recipes", "shard_tools.format"),
}


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
    return files + [path for path in (ROOT / "train.py", ROOT / "bench.py") if path.exists()]


def within(module: str, *names: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


FILES = {str(path.relative_to(ROOT)): list(imports_of(path)) for path in sources()}


def test_the_parser_sees_what_is_there() -> None:
    assert {"pipeline/plan.py", "pipeline/graph.py", "shard_tools/format.py", "train.py"} <= set(FILES)
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
            if within(found.module, *EXCEPTIONS.get(file, ())) and not found.at_import:
                continue
            if within(found.module, *own) and not within(found.module, package):
                # `import shard_tools.format` and `from shard_tools.format import x`, never shard_tools alone
                assert within(found.module, *ALLOWED[package]), f"{file}:{found.line} imports {found.module}"


def test_only_the_graph_imports_dali_and_only_inside_functions() -> None:
    users = {file for file, imports in FILES.items() for i in imports if within(i.module, "nvidia")}
    assert users <= {"pipeline/graph.py", "pipeline/probe.py", "pipeline/resize.py", "pipeline/augment_graph.py"}
    for file in users:
        for found in FILES[file]:
            assert not (found.at_import and within(found.module, "nvidia")), f"{file}:{found.line}"


def test_only_distributed_and_train_touch_torch_distributed() -> None:
    allowed = {"training/distributed.py", "train.py"}
    users = {file for file, imports in FILES.items() for i in imports if within(i.module, "torch.distributed")}
    assert users <= allowed
    for file in set(FILES) - allowed:  # nor by attribute
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "distributed" and isinstance(node.value, ast.Name):
                assert node.value.id != "torch", f"{file}:{node.lineno}"


AUGMENT = sorted(file for file in FILES if file.startswith("pipeline/augment/"))


@pytest.mark.parametrize("file", ["pipeline/plan.py", *AUGMENT, "pipeline/config.py", "pipeline/feed.py"])
def test_the_plan_is_numpy_alone(file: str) -> None:
    for found in FILES[file]:
        top = found.module.partition(".")[0]
        assert top in {"numpy", "pipeline"} or top in sys.stdlib_module_names or within(found.module, *SHARED), (
            f"{file}:{found.line} imports {found.module}"
        )


def loaded(statement: str, *modules: str) -> list[str]:
    """Which of `modules` a fresh interpreter has loaded after `statement`."""
    code = f"{statement}; import sys; print(*(m for m in {modules!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_plan_loads_neither_torch_nor_dali() -> None:
    statement = "import pipeline.plan, pipeline.augment, pipeline.feed, shard_tools.format"
    assert loaded(statement, "torch", "nvidia.dali", "webdataset", "PIL", "numpy") == ["numpy"]


def test_what_is_local_loads_no_fsspec() -> None:
    statement = "import pipeline.reader, shard_tools.writer, shard_tools.remote"
    assert loaded(statement, "fsspec", "s3fs", "aiohttp", "numpy") == ["numpy"]


def test_the_graph_loads_dali_only_when_it_is_built() -> None:
    assert loaded("import pipeline.graph", "nvidia.dali", "torch", "numpy") == ["numpy"]
