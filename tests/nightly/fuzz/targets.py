"""The fuzzing targets: for each input a valid folder, the file to damage, the kind of damage, and the reader.

A case is the bytes of one file, so any engine can make it: `python -m tests.nightly.fuzz` and hypothesis draw random
damage, and atheris searches for new paths.
"""

import io
import shutil
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import NamedTuple
from unittest import mock

import click
import numpy as np
from click.testing import CliRunner

from penstock import train
from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.config import DataConfig
from penstock.pipeline.feed import Feed
from penstock.pipeline.reader import ShardReader
from penstock.recipes import Recipe, config
from penstock.shard_tools.__main__ import main as shard_tools
from penstock.shard_tools.describe import describe, histograms, summary
from penstock.shard_tools.index import index
from penstock.shard_tools.resize import resize
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet
from penstock.training import checkpoint, quarantine
from penstock.training.metrics import read_metrics
from penstock.training.report import write_report
from tests.nightly.fuzz import inputs, mutate
from tests.nightly.fuzz.inputs import Files, Serial
from tests.nightly.fuzz.oracle import Violation, one_line, watched


class Target(NamedTuple):
    """`damage` makes a case from the file's valid bytes; `read` is given the folder with the case in it."""

    valid: Callable[[], Files]
    file: str
    damage: Callable[[Random, bytes], bytes]
    read: Callable[[Path], None]
    cases: int  # of 100,000


def case(target: Target, rng: Random) -> bytes:
    return target.damage(rng, target.valid()[target.file])


def run_case(target: Target, data: bytes, folder: Path) -> None:
    """Put the case among its valid neighbours in a fresh `folder`, and let the program read it, watched."""
    shutil.rmtree(folder, ignore_errors=True)
    inputs.write(target.valid() | {target.file: data}, folder)
    with watched(folder):
        target.read(folder)


def command(program: click.Command, *arguments: str) -> None:
    """Run a command line in this process. Raises Violation for an exception that a shell would show as a traceback."""
    result = CliRunner().invoke(program, list(arguments))
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        raise Violation(f"{type(error).__name__}: {error}") from error
    one_line(result.output)


def read_dataset(folder: Path) -> None:
    """Open, describe, and read every sample as training and validation do."""
    command(shard_tools, "info", str(folder))
    shard_set = ShardSet.open(folder)
    information = describe(shard_set)
    summary(information), histograms(information)
    for split in shard_set.splits.values():
        if not len(split):
            continue
        split.where(len(split) - 1)
        small = DataConfig(image_size=8, val_image_size=8, val_resize_size=8)
        reader = ShardReader(split)
        for augment in (AugmentConfig(), None):
            feed = Feed(split=split, config=small, augment=augment, batch_size=1, global_batch_size=1)
            for planned in feed.batches(0, 0, 8):
                reader.read_ahead(planned.sample_ids)
                for view, size in zip(
                    reader.views(planned.sample_ids), split.samples[planned.sample_ids]["size"], strict=True
                ):
                    if len(view) != size:
                        raise Violation(f"a view has {len(view)} bytes, the table says {size}")
                if not 0 <= int(planned.labels.min()) <= int(planned.labels.max()) < len(shard_set.classes):
                    raise Violation(f"labels {planned.labels} of {len(shard_set.classes)} classes")
        reader.close()


def verify(folder: Path) -> None:
    command(shard_tools, "verify", "--decode", "--workers", "1", str(folder))


def read_and_verify(folder: Path) -> None:
    verify(folder)
    read_dataset(folder)


def fix(folder: Path) -> None:
    command(shard_tools, "verify", "--fix", "--workers", "1", str(folder))


def index_and_pack(folder: Path) -> None:
    try:
        index(folder, on_bad="skip", executor=Serial())
        read_dataset(folder)
    finally:
        (folder / "dataset.json").unlink(missing_ok=True)
        (folder / "sub").mkdir()
        for path in folder.glob("*.tar"):
            path.rename(folder / "sub" / path.name)
        pack(folder / "sub", folder / "out", PackOptions(on_bad="skip"), executor=Serial())


def read_recipe(folder: Path) -> None:
    _round_trip(config.load_config(Recipe, folder / "recipe.toml"))


def read_overrides(folder: Path) -> None:
    text = (folder / "overrides").read_bytes().decode("utf-8", "surrogateescape")
    _round_trip(config.load_config(Recipe, None, text.split("\n\n")))


def _round_trip(recipe: Recipe) -> None:
    again = config.from_toml(Recipe, config.to_toml(recipe), "again")
    if config.diff(recipe, again):
        raise Violation(f"written and read again it differs: {config.diff(recipe, again)}")


def read_checkpoint(folder: Path) -> None:
    checkpoint.load(folder / "last.pt")


def damaged_checkpoint(rng: Random, data: bytes) -> bytes:
    """The archive's bytes; or a record of it,
    packed up again with the right checksums; or a pickle that would run."""
    kind = rng.randint(0, 3)
    if kind == 0:
        return mutate.damaged(rng, data)
    if kind == 1 and rng.random() < 0.3:
        return rng.choice(EVIL)
    source, stream = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    victim = rng.choice(source.namelist())
    with zipfile.ZipFile(stream, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/data.pkl") and (kind == 1 or name == victim):
                content = rng.choice(EVIL) if rng.random() < 0.2 else mutate.damaged(rng, content, rng.choice(EVIL))
            elif name == victim:
                content = mutate.damaged(rng, content)
            target.writestr(
                rng.choice(("../x", "/etc/passwd", "x", "archive/data.pkl")) if rng.random() < 0.02 else name, content
            )
    return stream.getvalue()


def _evil(module: str, name: str, argument: str) -> bytes:
    """A protocol-2 pickle that calls module.name(argument) if an unpickler allows it."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X" + len(argument).to_bytes(4, "little") + (
        argument.encode() + b"\x85R."
    )  # fmt: skip


EVIL = [_evil(*call) for call in (("os", "system", "touch evil"), ("posix", "system", "touch evil"),
        ("builtins", "eval", "open('evil','w')"), ("builtins", "open", "/etc/passwd"), ("torch", "load", "last.pt"),
        ("torch.hub", "load", "x"), ("subprocess", "getoutput", "touch evil"), ("torch", "_utils", "x"))]  # fmt: skip


def read_run(folder: Path) -> None:
    """The report's figures. The page itself takes a second or two, so only one case in a hundred makes it."""
    lines = read_metrics(folder)
    quarantine.read(folder, before_epoch=1)
    if sum(map(len, (str(line) for line in lines))) % 100 == 0:
        write_report(folder)


def draw_report(folder: Path) -> None:
    write_report(folder)


def damaged_arguments(rng: Random, data: bytes) -> bytes:
    """Command lines from the commands' own declarations: every option of each, with values of its kind and others."""
    name = rng.choice(sorted(shard_tools.commands))
    return b"\0".join(
        part.encode("utf-8", "surrogateescape") for part in [name, *arguments_of(rng, shard_tools.commands[name])]
    )


PATHS = ["images", "packed", "packed/train-000000.tar", "foreign", "out", "out/x", "table.csv", "sheet.png", "", ".",
         "missing", "images/train/class0/000.jpg", "\udcff", "x" * 300, "a\nb", "-", "~"]  # fmt: skip


def arguments_of(rng: Random, declared: click.Command) -> list[str]:
    words: list[str] = []
    for param in declared.params:
        if isinstance(param, click.Argument):
            words += [rng.choice(PATHS)] * (rng.random() < 0.97)
        elif rng.random() < 0.15:
            words.append(rng.choice(param.opts))
            if not getattr(param, "is_flag", False):
                words.append(_value(rng, param.type))
    if rng.random() < 0.1:
        words.insert(
            rng.randint(0, len(words)), rng.choice([*PATHS, "--help", "--nope", "-9", "--", "--seed=", "\udcff"])
        )
    return words


def _value(rng: Random, kind: click.ParamType) -> str:
    if rng.random() < 0.3:
        return rng.choice([*map(str, mutate.ODD[:20]), *PATHS, "9" * 400, "9" * 5000, "1e9", "١", "0x10"])
    match kind:
        case click.Choice():
            return rng.choice(list(kind.choices))
        case click.IntRange() | click.types.IntParamType():
            return str(rng.choice((0, 1, 2, 3, 7, 400, 10**6, 2**31)))
        case click.Path():
            return rng.choice(PATHS)
    return rng.choice(["a=0.5,b=0.5", "train=0.8,val=0.2", "1GB", "500", "1", "path", "label", "n01440764", "class0",
                       "demo", "rn50-90ep", "cifar10-cpu", "train", "val", "a=nan,b=1", "a=1e400,b=0"])  # fmt: skip


def everything() -> Files:
    """A folder in which commands run."""
    resize(np.zeros((9, 9, 4), np.uint8), 5, 5)  # Numba reads its compiled functions by pickle, unwatched
    table = b"path,label\nimages/train/class0/000.jpg,a\nimages/train/class1/001.jpg,b\n"
    files = {"table.csv": table, "arguments": b"info\0packed"}
    for name, part in (("images", inputs.images()), ("packed", inputs.dataset()), ("foreign", inputs.foreign())):
        files |= {f"{name}/{file}": data for file, data in part.items()}
    return files


def run_command(folder: Path) -> None:
    """In one process: a pool of several would not be watched. `demo` only reads its command line."""
    words = (folder / "arguments").read_bytes().decode("utf-8", "surrogateescape").split("\0")
    with ExitStack() as stack:
        for module in ("workers", "verify", "index", "demo"):
            stack.enter_context(mock.patch(f"shard_tools.{module}.process_pool", inputs.serial_pool))
        if words[0] == "demo":
            stack.enter_context(
                mock.patch("penstock.shard_tools.demo.make_demo", side_effect=ValueError("not made here"))
            )
        if "--scheduler" in words:
            return  # would look for it on the network
        command(shard_tools, *words)


def damaged_training_arguments(rng: Random, data: bytes) -> bytes:
    """The same for train.py and its sub-commands."""
    name = rng.choice(("", "", *train.main.commands))
    declared = train.main.get_command(click.Context(train.main), name) if name else train.main
    assert declared is not None
    words = [name] * bool(name) + arguments_of(rng, declared)
    if not name and rng.random() < 0.5:
        words += [
            "--data",
            "packed",
            "--set",
            rng.choice(("train.epochs=2", "model.name=x", "data.train_split=no", "=", "a")),
        ]
    return b"\0".join(word.encode("utf-8", "surrogateescape") for word in words)


def run_training_command(folder: Path) -> None:
    """Run everything before the training itself and the run directory, which needs git."""
    words = (folder / "arguments").read_bytes().decode("utf-8", "surrogateescape").split("\0")
    with (
        mock.patch("penstock.training.run.build_run", return_value=None),
        mock.patch("penstock.training.start.ensure_demo"),
    ):
        command(train.main, *words)


def overrides() -> Files:
    values = ["train.epochs=3", "optimizer.lr = 0.1", "model.name=resnet50", "data.mean=[1, 2, 3.5]",
              "augment.hflip=0.5",
              "data.path=a b", "model.compile=true", "augment.preset=none"]  # fmt: skip
    return {"overrides": "\n\n".join(values).encode()}


def recipe() -> Files:
    return {"recipe.toml": config.to_toml(Recipe()).encode()}


def damaged_recipe(rng: Random, data: bytes) -> bytes:
    """TOML: the bytes, or a value replaced by one of another kind."""
    if rng.random() < 0.4:
        return mutate.damaged(rng, data)
    lines = data.decode("utf-8", "surrogateescape").splitlines()
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(lines))
        key = rng.choice(
            (lines[at].partition("=")[0].strip(), "epochs", "[train]", "a.b.c", '"', "[[data]]", "[train.x]")
        )
        value = rng.choice(["1", "-1", "nan", "inf", "-inf", "1e400", "1" * 400, "9" * 5000, "0xfff", "true",
                            '"x"', "''",
                            '"\\ud800"', '"\\u0000"', "[]", "[1, 'a']", "{a = 1}", "{}", "1979-05-27T07:32:00Z",
                            "[" * 3000,
                            "[" * 90 + "]" * 90, "{a=" * 3000, "07:32:00", '"none"', "1_000", '"../../x"'])  # fmt: skip
        lines[at] = key if key.startswith("[") else f"{key} = {value}"
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def damaged_table(rng: Random, data: bytes) -> bytes:
    """A table: the bytes, or numbers in its rows, or another header over the same rows."""
    kind = rng.randint(0, 2)
    if kind == 0:
        return mutate.damaged(rng, data)
    begin = 10 + int.from_bytes(data[8:10], "little")
    if kind == 1:
        rows = bytearray(data[begin:])
        for _ in range(rng.choice((1, 2, 5))):
            at, size = rng.randrange(len(rows)), rng.choice((2, 4, 8))
            rows[at : at + size] = (rng.choice(mutate.INTERESTING) % 256**size).to_bytes(size, "little")[
                : len(rows) - at
            ]
        return data[:begin] + bytes(rows)
    descr = rng.choice(["[('shard', '<u4'), ('offset', '<u8'), ('size', '<u4'), ('label', '<i4'), ('height', '<u2'), "
                        "('width', '<u2')]", "'|O'", "[('a', '|O')]", "'<u8'", "'|V24'", "'<U999999999'",
                        "[('', '<u4')]",
                        "[('a', '<u4', (99999999999,))]", "None", "(1, 2)", "'<M8'", "__import__('os')"])  # fmt: skip
    shape = rng.choice(["(7,)", "(0,)", "(-1,)", "(99999999999999,)", "()", "(7, 0)", "(1, 7)", "7", "(True,)",
                        "(7.0,)",
                        "(18446744073709551616,)", "(2305843009213693952,)", "None", "('7',)"])  # fmt: skip
    head = f"{{'descr': {descr}, 'fortran_order': {rng.choice(('False', 'True', '0'))}, 'shape': {shape}, }}".encode()
    version = rng.choice((1, 1, 1, 2, 3, 0, 255))
    length = len(head).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + head + data[begin:]


TARGETS = {
    "dataset.json": Target(inputs.dataset, "dataset.json", mutate.damaged_json, read_and_verify, 18_000),
    "dataset.json, mended": Target(inputs.dataset, "dataset.json", mutate.damaged_json, fix, 6_000),
    "sample table": Target(inputs.dataset, "train.samples.npy", damaged_table, read_and_verify, 12_000),
    "sample table, mended": Target(inputs.dataset, "train.samples.npy", damaged_table, fix, 3_000),
    "source names": Target(inputs.dataset, "train.sources.txt", mutate.damaged, fix, 2_000),
    ".idx": Target(inputs.dataset, "train-000000.idx", mutate.damaged, verify, 6_000),
    "tar, verified": Target(inputs.dataset, "train-000000.tar", mutate.damaged_tar, read_and_verify, 8_000),
    "tar, mended": Target(inputs.dataset, "train-000000.tar", mutate.damaged_tar, fix, 5_000),
    "tar of others": Target(inputs.foreign, "train-0.tar", mutate.damaged_tar, index_and_pack, 8_000),
    "recipe": Target(recipe, "recipe.toml", damaged_recipe, read_recipe, 10_000),
    "--set": Target(overrides, "overrides", damaged_recipe, read_overrides, 10_000),
    "checkpoint": Target(lambda: {"last.pt": inputs.checkpoint_file()}, "last.pt", damaged_checkpoint,
    read_checkpoint, 10_000),
    "metrics.jsonl": Target(inputs.run, "metrics.jsonl", mutate.damaged_lines, read_run, 5_000),
    "quarantine.jsonl": Target(inputs.run, "quarantine.jsonl", mutate.damaged_lines, read_run, 4_000),
    "config.toml of a run": Target(inputs.run, "config.toml", damaged_recipe, draw_report, 50),
    "worst.json": Target(inputs.run, "worst.json", mutate.damaged_json, draw_report, 100),
    "command lines": Target(everything, "arguments", damaged_arguments, run_command, 3_000),
    "train.py's": Target(everything, "arguments", damaged_training_arguments, run_training_command, 2_000),
}  # fmt: skip
