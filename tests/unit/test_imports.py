"""Imports go one way (CONTRIBUTING.md), read from the sources with `ast`. The rooms are imported as `penstock.ROOM`."""

import ast
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
                        yield Import(alias.name.removeprefix("penstock."), at_import, child.lineno)
                case ast.ImportFrom():
                    package = path.relative_to(ROOT).parent.parts
                    start = [*package[: len(package) - child.level + 1]] if child.level else []
                    base = ".".join([*start, *([child.module] if child.module else [])])
                    base = base.removeprefix("penstock.")
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


def test_rooms_are_imported_through_penstock_alone() -> None:
    """By its bare name a module would be there twice, with two of each class."""
    for path in [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(within(name, *PACKAGES, COMMON) for name in names), f"{path}:{node.lineno}: {names}"


def test_penstock_has_a_link_to_each_room() -> None:
    """They are one package for Python, type checkers and wheels, and lie at the top for people."""
    links = {path.name: path.readlink() for path in (ROOT / "penstock").iterdir() if path.is_symlink()}
    assert links == {name: Path("..", name) for name in (*PACKAGES, "settings.py", "train.py", "bench.py")}


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
    assert users <= {f"pipeline/{name}.py" for name in ("graph", "probe", "resize", "compiled_node", "augment/graph")}
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


# the plan, by DALI, by compiled code and by PIL
EXECUTED = tuple(f"pipeline/augment/{name}.py" for name in ("graph", "kernel", "reference"))
AUGMENT = sorted(file for file in FILES if file.startswith("pipeline/augment/") and file not in EXECUTED)


@pytest.mark.parametrize("file", ["pipeline/plan.py", *AUGMENT, "pipeline/config.py", "pipeline/feed.py"])
def test_the_plan_is_numpy_alone(file: str) -> None:
    for found in FILES[file]:
        top = found.module.partition(".")[0]
        assert top in {"numpy", "pipeline", "shards", COMMON} or top in sys.stdlib_module_names, (
            f"{file}:{found.line} imports {found.module}"
        )
