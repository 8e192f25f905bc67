"""The fixed part of the fuzzing: a few hundred cases of each kind, and one test for each finding of the campaigns."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock import train
from penstock.pipeline.reader import ShardReader
from penstock.recipes import Recipe, config
from penstock.shard_tools.__main__ import main as shard_tools
from penstock.shard_tools.index import index
from penstock.shard_tools.repair import repair
from penstock.shard_tools.sources.tarmembers import iterate_tar
from penstock.shard_tools.verify import verify
from penstock.shards.description import _checksum
from penstock.shards.format import INFO_FILE, SAMPLE_DTYPE, ShardSet
from penstock.training import checkpoint, quarantine
from penstock.training.metrics import read_metrics
from tests.nightly.fuzz import inputs, oracle
from tests.nightly.fuzz.oracle import Violation, watched
from tests.nightly.fuzz.targets import EVIL, TARGETS, Target, case, run_case

ROOT = Path(__file__).parents[3]
SLOW = {
    "config.toml of a run": 0,
    "worst.json": 1,
    "tar of others": 12,
    "tar, mended": 8,
    "sample table, mended": 8,
    "source names": 4,
}


@pytest.mark.parametrize("name", [name for name in TARGETS if SLOW.get(name, 1)])
def test_no_input_does_harm(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for i in range(SLOW.get(name, 30)):
        try:
            run_case(target, case(target, Random(f"1 {name} {i}")), tmp_path / "case")
        except Violation as violation:
            pytest.fail(f"case {i}: {violation}")


def test_the_guided_search_runs(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no build for this Python or machine")
    command = [sys.executable, "-m", "tests.nightly.fuzz.guided", "metrics.jsonl", "-runs=100", "-seed=1"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Done 100 runs" in done.stderr


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIXED = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _info() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(inputs.dataset()[INFO_FILE])
    return content


@FIXED
@given(
    key=st.sampled_from(["format", "classes", "splits", "files", "made", "checksum", "other"]),
    value=JSON,
    shard=st.none() | st.tuples(st.sampled_from(["file", "samples", "bytes", "sha256"]), JSON),
)
def test_any_json_in_a_description(
    key: str, value: Any, shard: tuple[str, Any] | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    info = _info()
    if shard:
        info["splits"]["train"]["shards"][0][shard[0]] = shard[1]
    else:
        info[key] = value
    folder = tmp_path_factory.getbasetemp() / "any-json"
    run_case(TARGETS["dataset.json"], json.dumps(info).encode("utf-8", "surrogatepass"), folder)


@FIXED
@given(st.dictionaries(st.sampled_from(["epochs", "seed", "precision", "x"]), JSON | st.binary(), max_size=3))
def test_any_value_in_an_override(values: dict[str, Any]) -> None:
    overrides = [f"train.{key}={value}" for key, value in values.items()]
    with suppress(ValueError):
        config.load_config(Recipe, None, overrides)


# ——— The oracle itself: each kind of harm is seen.


def _evil_pickle(folder: Path) -> None:
    import pickle

    pickle.loads(EVIL[0].replace(b"os\nsystem", b"os\ngetenv"))


HARM: dict[str, Callable[[Path], Any]] = {
    "was read": lambda folder: Path("/etc/passwd").read_bytes(),
    "was written": lambda folder: (folder.parent / "outside").write_bytes(b""),
    "was changed": lambda folder: (folder / "a").rename(folder.parent / "outside"),
    "pickle.find_class": _evil_pickle,
    "os.system": lambda folder: os.system("true"),
    "KeyError": lambda folder: {}["x"],
    "longer than": lambda folder: [None for _ in iter(int, 1)],
    "allocat": lambda folder: np.ones(1 << 34, np.uint8),
}


@pytest.mark.parametrize("what", HARM)
def test_the_oracle_sees(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / "a").write_bytes(b"")
    with pytest.raises(Violation, match=what), watched(folder, limit_s=0.2):
        HARM[what](folder)


def test_the_oracle_lets_good_and_refused_inputs_pass(tmp_path: Path) -> None:
    for target in (TARGETS["dataset.json"], TARGETS["tar of others"], TARGETS["recipe"], TARGETS["checkpoint"]):
        run_case(target, target.valid()[target.file], tmp_path / "case")
        run_case(target, b"", tmp_path / "case")
    with pytest.raises(Violation, match="a traceback"):
        oracle.one_line("Traceback (most recent call last)")


# ——— What the campaigns have found.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inputs.write(inputs.dataset(), tmp_path / "data")
    (tmp_path / "secret").write_text("outside")
    return tmp_path / "data"


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    info = _info()
    change(info)
    info.pop("checksum", None)
    (folder / INFO_FILE).write_text(json.dumps(info | {"checksum": _checksum(info)}))


def _shard(info: dict[str, Any]) -> dict[str, Any]:
    shard: dict[str, Any] = info["splits"]["train"]["shards"][0]
    return shard


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "/dev/zero", "..", "a/b", "a\0b", "\ud800"])
def test_names_in_a_description_stay_inside(name: str, folder: Path) -> None:
    def as_shard(info: dict[str, Any]) -> None:
        _shard(info)["file"] = name

    def as_split(info: dict[str, Any]) -> None:
        info["splits"][name] = info["splits"].pop("val")

    for change in (as_shard, as_split) if name != ".." else (as_shard,):  # "...samples.npy" is as good as any
        _edit(folder, change)
        with watched(folder):
            with pytest.raises(ValueError, match=r"dataset\.json"):
                ShardSet.open(folder)
            with pytest.raises(ValueError, match="cannot be repaired"):
                repair(folder)
            assert verify(folder)
    _edit(folder, lambda info: info["files"].update({name: "0" * 64}))
    with watched(folder):
        assert [finding.file for finding in verify(folder)] == [name]
    assert (folder.parent / "secret").read_text() == "outside"


LINKED = ["train-000000.tar", "train.samples.npy", "train.sources.txt", INFO_FILE]


@pytest.mark.parametrize("name", LINKED)
def test_links_are_not_followed_out_of_a_dataset(name: str, folder: Path) -> None:
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    with watched(folder), pytest.raises(ValueError, match=r"is a link to .*, outside the dataset"):
        ShardSet.open(folder)
    with watched(folder), pytest.raises(ValueError, match="cannot be repaired"):
        repair(folder)
    (folder / name).unlink()
    (folder.parent / name).rename(folder / f"{name}.real")
    (folder / name).symlink_to(f"{name}.real")
    ShardSet.open(folder)  # inside they are


@pytest.mark.parametrize("name", LINKED)
def test_a_pipe_for_a_file_does_not_hang(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with watched(folder, limit_s=2), pytest.raises(ValueError, match="not a regular file"):
        ShardSet.open(folder)
    with watched(folder, limit_s=2), pytest.raises(ValueError, match="cannot be repaired"):
        repair(folder)


def test_an_index_that_is_a_pipe_or_a_link_is_a_finding(folder: Path) -> None:
    path = folder / "train-000000.idx"
    path.rename(folder.parent / "idx")
    for make in (lambda: path.symlink_to(folder.parent / "idx"), lambda: os.mkfifo(path)):
        make()
        with watched(folder, limit_s=2):
            assert [finding.kind for finding in verify(folder)] == ["index"]
        path.unlink()


def test_indexing_does_not_follow_links_out(tmp_path: Path) -> None:
    inputs.write(inputs.foreign(), tmp_path / "data")
    (tmp_path / "data" / "train-0.tar").rename(tmp_path / "train-0.tar")
    (tmp_path / "data" / "train-0.tar").symlink_to(tmp_path / "train-0.tar")
    with watched(tmp_path / "data"), pytest.raises(ValueError, match="outside the dataset"):
        index(tmp_path / "data", executor=inputs.Serial())


NUMBERS = [float("inf"), -1, 1 << 63, 1 << 70, -(1 << 70), [], None]


@pytest.mark.parametrize("key", ["samples", "bytes"])
@pytest.mark.parametrize("value", NUMBERS)
def test_sizes_in_a_description(key: str, value: Any, folder: Path) -> None:
    _edit(folder, lambda info: _shard(info).update({key: value}))
    with pytest.raises(ValueError, match=r"dataset\.json: not a dataset description"):
        ShardSet.open(folder)
    with pytest.raises(ValueError, match="cannot be repaired"):
        repair(folder)


def test_offsets_that_overflow_lie_beyond_the_shard(folder: Path) -> None:
    path = folder / "train.samples.npy"
    table = np.load(path, mmap_mode="r+")
    table["offset"][0] = 2**64 - int(table["size"][0])  # their sum is 0
    table.flush()
    with pytest.raises(ValueError, match="sample 0 is beyond the end of its shard"):
        ShardReader(ShardSet.open(folder).split("train"))


HEADERS = [
    b"\x93NUMPY\x01\x00\x04\x00{'a(",  # the tokenizer's own error
    b"\x93NUMPY\x01\x00\x3a\x00{'descr': '<u8', 'fortran_order': False, 'shape': (1<<70,)}",
    b"\x93NUMPY\x01\x00\x4e\x00{'descr': '<u8', 'fortran_order': False, 'shape': (99999999999999999999,)}          \n",
    b"PK\x03\x04 an archive, which np.load would open",
    b"PK\x05\x06" + bytes(18),
    b"",
    b"\x80\x04\x95 a pickle",
]


@pytest.mark.parametrize("data", HEADERS)
def test_headers_of_a_table(data: bytes, folder: Path) -> None:
    (folder / "train.samples.npy").write_bytes(data)
    with watched(folder), pytest.raises(ValueError, match="cannot read the sample table"):
        ShardSet.open(folder)
    repair(folder)
    assert ShardSet.open(folder).split("train").samples.dtype == SAMPLE_DTYPE


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, '{"format": ' + "9" * 5000 + "}", "NaN", "[1]"])
def test_json_that_is_no_description(text: str, folder: Path) -> None:
    (folder / INFO_FILE).write_text(text)
    for words in (["info"], ["verify", "--workers", "1"], ["verify", "--fix", "--workers", "1"]):
        result = CliRunner().invoke(shard_tools, [*words, str(folder)])
        assert isinstance(result.exception, SystemExit)
        assert INFO_FILE in result.output


def test_a_description_made_by_somebody_else(folder: Path) -> None:
    _edit(folder, lambda info: info["made"].update({"converted": ["png"], "rejected": {}}))
    result = CliRunner().invoke(shard_tools, ["info", str(folder)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/x.jpg", "a/../../x.jpg"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_member_names_and_links_write_nothing_outside(name: str, kind: bytes, tmp_path: Path) -> None:
    inputs.write(inputs.foreign(), tmp_path / "data")
    with tarfile.open(tmp_path / "data" / "train-0.tar", "a") as tar:
        for extension, text in (("jpg", b"x"), ("cls", b"0")):
            info = tarfile.TarInfo(f"{name.removesuffix('jpg')}{extension}")
            info.type, info.linkname = kind, "/etc/passwd"
            if kind == tarfile.REGTYPE:
                info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    target: Target = TARGETS["tar of others"]
    run_case(target, (tmp_path / "data" / "train-0.tar").read_bytes(), tmp_path / "case")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [1 << 33, 1 << 70])
def test_headers_that_claim_to_be_huge(kind: bytes, size: int, tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    data = info.tobuf(tarfile.GNU_FORMAT) + inputs.foreign()["train-0.tar"]
    (tmp_path / "x.tar").write_bytes(data)
    with watched(tmp_path), pytest.raises(ValueError, match=r"x\.tar: is damaged or not a tar"):
        list(iterate_tar(tmp_path / "x.tar"))
    run_case(TARGETS["tar of others"], data, tmp_path / "case")
    run_case(TARGETS["tar, mended"], data, tmp_path / "case")


def test_indexing_what_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        index(Path("x" * 300))


@pytest.mark.parametrize("size", ["9" * 400, "9" * 400 + "G", "0.1", "1e9"])
def test_sizes_on_the_command_line(size: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(shard_tools, ["pack", "x", str(tmp_path / "out"), "--shard-size", size])
    assert isinstance(result.exception, SystemExit)
    assert "is not a size" in result.output


TOML = [
    "x = " + "[" * 5000,
    "x = " + "{a=" * 5000,
    "[train]\nepochs = " + "9" * 5000,
    "\udcff",
    '[train]\nepochs = "\\ud800"',
]


@pytest.mark.parametrize("text", TOML)
def test_toml_that_breaks_its_parser(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"recipe\.toml: not a TOML file"):
        config.load_config(Recipe, path)
    if "\udcff" not in text:
        with pytest.raises(ValueError, match="again: not TOML"):
            config.from_toml(Recipe, text, "again")


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 400, "9" * 5000, "nan", "-nan"])
def test_overrides_that_are_no_number(value: str) -> None:
    with pytest.raises(ValueError, match=r"--set optimizer\.lr=.*: expected a number"):
        config.load_config(Recipe, None, [f"optimizer.lr={value}"])


def archive_of(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A checkpoint with another pickle."""
    source, stream = zipfile.ZipFile(io.BytesIO(inputs.checkpoint_file())), io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("/data.pkl") else source.read(name))
    return stream.getvalue()


@pytest.mark.parametrize("pickled", EVIL)
def test_no_pickle_runs(pickled: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for data in (pickled, archive_of(pickled)):
        path.write_bytes(data)
        with watched(tmp_path), pytest.raises(ValueError, match="not a readable checkpoint"):
            checkpoint.load(path)
        assert not (tmp_path / "evil").exists()


def test_lengths_in_a_checkpoint_are_not_believed(tmp_path: Path) -> None:
    """What torch's old format says of a string, what a compressed record unpacks to, records that share bytes."""
    path, string = tmp_path / "last.pt", b"\x80\x02X" + (2**31 - 1).to_bytes(4, "little")
    shared = io.BytesIO(archive_of(bytes(3 << 20)))
    with zipfile.ZipFile(shared, "a") as archive:
        archive.filelist += archive.filelist * 500
        archive._didModify = True  # type: ignore[attr-defined]
    for data, why in (
        (string, "not a zip file"),
        (archive_of(bytes(1 << 26), zipfile.ZIP_DEFLATED), "compressed"),
        (shared.getvalue(), "longer than the file"),
    ):
        path.write_bytes(data)
        with watched(tmp_path), pytest.raises(ValueError, match=f"not a readable checkpoint .*{why}"):
            checkpoint.load(path)


LINES = [
    b"[" * 100_000,
    b'{"sample_id": 1e999, "epoch": 0}',
    b'{"sample_id": 1, "epoch": Infinity}',
    b"\xff",
    b"[]",
    b"7",
]


@pytest.mark.parametrize("line", LINES)
def test_lines_of_a_run(line: bytes, tmp_path: Path) -> None:
    good = b'{"kind": "step", "step": 0, "loss": null, "sample_id": 1, "epoch": 0}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good, line, good]) + b"\n")
    assert [entry["kind"] for entry in read_metrics(tmp_path) if entry.get("kind")] == ["step", "step"]
    (tmp_path / "quarantine.jsonl").write_bytes(b"\n".join([good, line, good]) + b"\n")
    with pytest.raises(ValueError, match=r"quarantine\.jsonl, line 2"):
        quarantine.read(tmp_path, before_epoch=3)


@pytest.mark.parametrize("name", ["eval", "export", "replay"])
def test_a_name_that_no_file_system_takes(name: str, tmp_path: Path) -> None:
    words = [name, "x" * 300, *([str(tmp_path / "x.pt")] if name == "export" else [])]
    result = CliRunner().invoke(train.main, words)
    assert isinstance(result.exception, SystemExit), result.exception
    assert "name too long" in result.output
