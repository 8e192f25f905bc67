"""`bench.py` and what stands beside it in `benchmarks/`: figures against known ones, and JSON that scripts can read."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from click.testing import CliRunner
from PIL import Image

import bench
from benchmarks import images, parity, rates, record, tune
from benchmarks.studies import cold, order, scale
from engine import machine
from model.networks import build_model
from recipes import Recipe, recipe_file
from shard_tools.format import ShardSet
from tests.conftest import VAL_SIZES
from training import checkpoint, config

ROOT = Path(__file__).parents[2]
SMALL = ["--batch-size", "8", "--image-size", "32", "--seconds", "0.3", "--repeats", "3", "--device", "cpu"]
NETWORK = ["--recipe", "demo", "--set", "model.name=cifar_resnet8"]


def run(*arguments: object) -> str:
    """What `bench.py` prints, both streams."""
    result = CliRunner().invoke(bench.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("loader", ["dali", "reference", "synthetic"])
def test_loader_writes_its_figures(loader: str, dataset_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "result.json"
    run("loader", "--data", dataset_dir, "--loader", loader, "--threads", "1", "--json", file, *SMALL)
    result = record.read(file)
    assert result["benchmark"] == "loader"
    (name, figures), expected = next(iter(result["programs"].items())), {"loader": loader, "image_size": 32}
    assert name == loader
    assert len(figures["images_per_s"]) == len(figures["data_wait"]) == 3
    assert min(figures["data_wait"]) > 0.5, "a loader that nobody works on is all waiting"
    assert result["settings"] | expected | {"batch_size": 8, "threads": 1, "ranks": 1} == result["settings"]
    assert result["env"]["packages"]["torch"]


@pytest.mark.parametrize("kind", ["compute", "train"])
def test_steps_are_measured(kind: str, dataset_dir: Path, tmp_path: Path) -> None:
    run(kind, "--data", dataset_dir, *NETWORK, "--out", tmp_path, *SMALL)
    (file,) = tmp_path.glob(f"{kind}-*.json")
    result = record.read(file)
    assert result["settings"]["model"] == "cifar_resnet8"
    (figures,) = result["programs"].values()
    assert max(figures["data_wait"]) < 0.9


def test_two_loaders_are_compared_in_turn_and_with_an_earlier_result(dataset_dir: Path, tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("first.json", "second.json", "other.json"))
    pair = ["loader", "--data", dataset_dir, "--loader", "synthetic", "--against", "dali"]
    printed = run(*pair, "--json", first, *SMALL)
    ratio = record.read(first)["ratios"]["synthetic / dali"]
    assert 1 < ratio["min"] <= ratio["low"] <= ratio["median"], "making no images is faster than decoding them"
    assert f"synthetic / dali: {ratio['median']:.2f}, 95 % interval" in printed

    again = ["loader", "--data", dataset_dir, *SMALL, "--threads", "2"]
    printed = run(*again, "--compare", first, "--json", second)
    result = record.read(second)
    assert list(result["ratios"]) == [f"dali / dali of {first}"]
    rates = [statistics.median(one["programs"]["dali"]["images_per_s"]) for one in (result, record.read(first))]
    assert next(iter(result["ratios"].values()))["median"] == pytest.approx(rates[0] / rates[1])
    record.write(other, record.read(first) | {"env": record.read(first)["env"] | {"gpu": "Another GPU"}})
    refused = CliRunner().invoke(bench.main, [*map(str, again), "--compare", str(other)])
    assert refused.exit_code == 1
    assert "different devices (GPU None and Another GPU)" in refused.output
    assert "Another GPU" not in run(*again, "--compare", other, "--force")


def test_settings_that_differ_from_an_earlier_results_are_told() -> None:
    def result(rate: float, **settings: int) -> dict[str, Any]:
        return {"benchmark": "loader", "settings": settings, "ratios": {}, "programs": {"a": {"images_per_s": [rate]}}}

    new, old = result(30, threads=2, image_size=32, seconds=5), result(20, threads=1, image_size=32, seconds=9)
    assert rates.compared(new, Path("old.json"), old) == ["threads: 1 in old.json, 2 here"]
    assert new["ratios"]["a / a of old.json"]["median"] == 1.5
    with pytest.raises(ValueError, match="no program in common"):
        rates.compared(new, Path("old.json"), old | {"programs": {"b": {}}})


def test_two_ranks_are_measured_together_and_one_alone(dataset_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["train", "--data", dataset_dir, *NETWORK, "--threads", "1", "--json", file, *SMALL]
    command = [*torchrun, "bench.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = record.read(file)
    assert result["settings"]["ranks"] == 2
    assert list(result["programs"]) == ["dali", "dali, 1 rank"]
    both, alone = result["programs"].values()
    assert len(both["images_per_s_of_rank"]) == 2
    np.testing.assert_allclose(np.sum(both["images_per_s_of_rank"], axis=0), both["images_per_s"])
    np.testing.assert_allclose(*both["images_per_s_of_rank"], rtol=0.3, err_msg="in step")
    efficiency = [total / (2 * one) for total, one in zip(both["images_per_s"], alone["images_per_s"], strict=True)]
    assert result["ratios"]["dali / (2 × dali, 1 rank)"]["median"] == pytest.approx(statistics.median(efficiency))
    assert done.stdout.count("scaling efficiency") == 1, "rank 0 alone prints"
    assert result["command"].startswith("torchrun --nproc-per-node 2 bench.py train")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["h2d"], "needs one"),
        (["loader", "--data", "synthetic:469"], "expected synthetic:WIDTHxHEIGHT"),
        (["loader", "--data", "synthetic:5x469"], "16 to 2048"),
        (["loader", "--data", "synthetic:469x401x3"], "expected synthetic:"),
        (["loader", "--compare", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_told_at_once(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(bench.main, [*arguments, "--device", "cpu"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert named in result.output
    assert result.output.count("\n") == 1


def test_synthetic_images_are_as_heavy_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "NUM_IMAGES", {"train": 150, "val": 4})
    run("loader", "--data", "synthetic:120x90", "--set", "data.threads=1", *SMALL)
    made = ShardSet.open(tmp_path / "data/synthetic-120x90")
    samples = made.split("train").samples
    assert len(samples) == 150
    assert len(made.classes) == images.NUM_CLASSES
    width, height = samples["width"].astype(int), samples["height"].astype(int)
    assert abs(width.mean() - 120) < 1
    assert abs(height.mean() - 90) < 1
    assert len(set(zip(width, height, strict=True))) > 40
    assert width.std() > 20
    before = (tmp_path / "data/synthetic-120x90/dataset.json").stat().st_mtime_ns
    assert images.ensure("synthetic:120x90") == Path("data/synthetic-120x90")
    assert (tmp_path / "data/synthetic-120x90/dataset.json").stat().st_mtime_ns == before, "made once"
    images.make(tmp_path / "again", 120, 90)
    assert ShardSet.open(tmp_path / "again").fingerprint == made.fingerprint


def test_synthetic_images_of_imagenets_size_have_its_bytes() -> None:
    shapes = images.sizes(469, 401, 1000)
    np.testing.assert_allclose(shapes.mean(axis=0), [469, 401], atol=1)
    texture = images.pink_texture(images.TEXTURE_SIDE, np.random.default_rng(0))
    jpegs = [images.jpeg(texture, shapes[row], "train", row) for row in range(150)]
    size, pixels = np.array([len(jpeg) for jpeg in jpegs]), shapes[:150].prod(axis=1)
    assert size.sum() / pixels.sum() == pytest.approx(110e3 / (469 * 401), rel=0.1)
    assert np.quantile(size / pixels, 0.9) > 2 * np.quantile(size / pixels, 0.1), "some are smooth, some are not"
    chroma = [simplejpeg.decode_jpeg_header(jpeg)[3] for jpeg in jpegs]
    assert 0.6 < chroma.count("444") / len(chroma) < 0.9


@pytest.mark.parametrize("more", [["--data", "nowhere"], ["--recipe", "nothing"], ["--set", "data.threads=x"]])
def test_bad_input_gets_one_clear_line(more: list[str], dataset_dir: Path) -> None:
    result = CliRunner().invoke(bench.main, ["loader", "--data", str(dataset_dir), *more])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")


SMALL_IMAGES = [
    f"--set={setting}" for setting in ("data.image_size=32", "data.val_image_size=32", "data.val_resize_size=36")
]


def test_parity_reports_both_splits_and_the_verdict_of_a_network(dataset_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    arguments = ["parity", "--data", str(dataset_dir), "--num", "50", "--steps", "2", "--out", str(out), *SMALL_IMAGES]
    result = CliRunner().invoke(bench.main, [*arguments, "--threads", "1", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    report = json.loads((out / "parity.json").read_text())
    splits = [(line["split"], line["num_images"]) for line in report["differences"]]
    assert splits == [("training", 50), ("validation", len(VAL_SIZES))]
    for line in report["differences"]:
        assert line["mean"] <= line["worst_mean"] < 1.5, "a grey level or so, or another image was decoded"
        assert line["worst_image"].endswith(".jpg")
        assert Image.open(out / line["picture"]).size == (3 * 32, 32)
    assert report["top1"][0]["num_images"] == len(VAL_SIZES)
    assert report["top1"][0]["top1_agreement"] >= 0.9


def test_parity_statistics_are_numpys(dataset: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = parity.feed_of(Recipe(), dataset.split("val"), False, 8)
    rng = np.random.default_rng(0)
    ours, noise = rng.uniform(20, 200, (8, 3, 5, 5)), rng.exponential(3, (8, 3, 5, 5))
    noise[5] += 4
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (feed.config.mean, feed.config.std))

    def both(*_: object) -> Iterator[tuple[torch.Tensor, ...]]:
        for rows in (slice(0, 3), slice(3, 8)):
            left, right = ((levels[rows] - mean) / std for levels in (ours, ours + noise))
            yield torch.from_numpy(left).float(), torch.from_numpy(right).float(), torch.arange(8)[rows]

    monkeypatch.setattr(parity, "both", both)
    pair = parity.programs(torch.device("cpu"))[0]
    found = parity.compare(feed, *pair, 1, tmp_path)
    assert found.num_images == 8
    np.testing.assert_allclose(found.mean, noise.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.p99, np.percentile(noise, 99), atol=2 * parity.BIN)
    np.testing.assert_allclose([found.max, found.worst_mean], [noise.max(), noise[5].mean()], rtol=1e-4)
    assert found.worst_image == dataset.split("val").source_name(5)
    pixels = np.asarray(Image.open(tmp_path / found.picture), np.float64).transpose(2, 0, 1)
    expected = [ours[5], ours[5] + noise[5], noise[5] * 8]
    np.testing.assert_allclose(pixels, np.concatenate(expected, axis=2).clip(0, 255), atol=0.51)


def test_a_checkpoints_network_can_judge(dataset: ShardSet, tmp_path: Path) -> None:
    recipe = config.load_config(Recipe, None, ["model.name=cifar_resnet8"])
    net = build_model(recipe.model, len(dataset.classes))
    classes = [asdict(c) for c in dataset.classes]
    state = {"net": net.state_dict(), "recipe": config.to_toml(recipe), "classes": classes}
    checkpoint.save(tmp_path / "last.pt", state)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(parity.trained(tmp_path / "last.pt", dataset).eval()(images), net.eval()(images))
    other = build_model(recipe.model, 1).state_dict()
    checkpoint.save(tmp_path / "last.pt", state | {"net": other, "classes": classes[:1]})
    with pytest.raises(ValueError, match="has 1 classes"):
        parity.trained(tmp_path / "last.pt", dataset)


LADDERS = {"threads": [1, 2, 4, 8], "prefetch": [1, 2, 3, 4], "read_ahead": [0, 2, 4, 8]}
START = {"threads": 8, "prefetch": 2, "read_ahead": 4}


def rate(settings: dict[str, int]) -> float:
    """Best at 2 threads and prefetch 4; read_ahead 8 gains 2 %, which is nothing."""
    threads = {1: 0.6, 2: 1.0, 4: 0.9, 8: 0.8}[settings["threads"]]
    return 1000 * threads * (1 + 0.1 * settings["prefetch"]) * (1.02 if settings["read_ahead"] == 8 else 1.0)


def versus(ours: dict[str, int], theirs: dict[str, int], turns: int) -> list[tuple[float, float]]:
    return [(rate(ours), rate(theirs))] * turns


def test_tuning_climbs_to_the_best_and_ignores_noise() -> None:
    found = tune.search(START, LADDERS, versus, lambda: True)
    assert found.finished
    assert found.settings == {"threads": 2, "prefetch": 4, "read_ahead": 4}
    tried = [tuple(sorted({**START, t.setting: t.value}.items())) for t in found.trials if not t.accepted]
    assert len(found.trials) < 4 * 4 * 4 / 3, "a coordinate search tries few of all combinations"
    assert tried
    drifting = iter([0.99, 1.2] * 1000)  # in half of the turns another program ran
    found = tune.search(START, LADDERS, lambda a, b, turns: [(next(drifting), 1.0) for _ in range(turns)], lambda: True)
    assert found.settings == START


def test_tuning_stops_when_its_time_is_up() -> None:
    left = iter([True, True, False])
    found = tune.search(START, LADDERS, versus, lambda: next(left))
    assert not found.finished
    assert len(found.trials) == 2


def test_one_turn_a_trial_is_enough_to_decide() -> None:
    found = tune.search(START, LADDERS, versus, lambda: True, turns=1)
    assert found.settings == {"threads": 2, "prefetch": 4, "read_ahead": 4}


def test_the_batch_size_is_told_and_not_written() -> None:
    def versus(ours: dict[str, int], theirs: dict[str, int], turns: int) -> list[tuple[float, float]]:
        rates = {16: 100, 32: 200, 64: 220, 128: 221}
        return [(rates[ours["batch_size"]], rates[theirs["batch_size"]])] * turns

    found = tune.search({"threads": 2, "batch_size": 32}, {"batch_size": [16, 32, 64, 128]}, versus, lambda: True)
    assert "64 is 1.10 times as fast" in tune.batch_advice(found, 32)
    found = tune.search({"batch_size": 64}, {"batch_size": [32, 64, 128]}, versus, lambda: True)
    assert "(128, 32 tried) none is faster" in tune.batch_advice(found, 64)


def test_tune_writes_a_file_that_the_next_run_takes(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--data", dataset_dir, "--batch-size", "8", "--image-size", "32", "--device", "cpu"]
    printed = run("tune", *small, "--seconds", "1", "--turn", "0.1", "--repeats", "1", "--json", "tune.json")
    recipe, line = machine.load_recipe(recipe_file("rn50-90ep"), (), device="cpu")
    options = printed.splitlines()[-1].partition("elsewhere use: ")[2].split("--set ")[1:]
    assert config.load_config(Recipe, recipe_file("rn50-90ep"), [option.strip() for option in options]) == recipe
    assert line.startswith("machine.toml: data.threads=")
    assert options[0].strip() in Path("machine.toml").read_text(), "the header says the same"
    result = record.read(Path("tune.json"))
    assert result["trials"]
    assert f"data.threads={result['found']['threads']}" in line

    assert line in run("loader", *small, "--seconds", "0.1", "--repeats", "1")
    assert "not used" in run("loader", *small, "--seconds", "0.1", "--repeats", "1", "--no-machine-config")


def test_the_laid_out_table_is_what_pack_writes(dataset: ShardSet) -> None:
    packed = dataset.split("train").samples
    packed = packed[packed["shard"] == 0]
    table = order.laid_out(packed["size"].astype(np.int64), 3)
    np.testing.assert_array_equal(table["offset"], packed["offset"])


def test_order_statistics_of_true_permutations() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), rng.integers(5, 90, 40))
    drawn = [len(np.unique(rng.permutation(labels)[:64])) for _ in range(3000)]
    np.testing.assert_allclose(order.expected_classes(np.bincount(labels), 64), np.mean(drawn), atol=0.1)
    mixed = order.class_mix(rng.permutation(np.repeat(np.arange(40), 500)), 64, 40)
    assert abs(mixed["classes"] - mixed["classes_expected"]) < 0.5
    assert abs(mixed["spread"] - 1) < 0.1
    assert order.class_mix(np.repeat(np.arange(40), 500), 64, 40)["spread"] > 20, "sorted: one class a batch"


def test_requests_are_runs_of_neighbours(dataset: ShardSet) -> None:
    samples = dataset.split("train").samples
    chosen = np.array([30, 2, 3, 1, 10, 24, 25])  # 25 samples a shard
    lengths, shards = order.requests(samples[chosen])

    def span(first: int, last: int) -> int:
        return int(samples["offset"][last] + samples["size"][last] - samples["offset"][first])

    assert lengths.tolist() == [span(1, 3), span(10, 10), span(24, 24), span(25, 25), span(30, 30)]
    assert shards == 2


def test_dropped_pages_are_gone(tmp_path: Path) -> None:
    file = tmp_path / "pages"
    file.write_bytes(b"x" * (1 << 20))
    cold.load([file])
    assert cold.resident_share([file]) == 1
    probe = tmp_path / "probe"
    probe.write_bytes(b"x" * (1 << 20))
    with open(probe, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cold.resident_share([probe]) == 1:
        pytest.skip("this file system lives in memory")
    assert cold.drop([file]) == cold.resident_share([file]) == 0


def test_the_repeated_dataset_is_whole_and_a_huge_one_is_never_an_array(dataset: ShardSet, tmp_path: Path) -> None:
    scale.repeated_dataset(dataset, 1000, tmp_path)
    repeated = ShardSet.open(tmp_path).split("train")
    np.testing.assert_array_equal(repeated.samples, np.resize(dataset.split("train").samples, 1000))
    assert repeated.shard_path(2).read_bytes() == dataset.split("train").shard_path(2).read_bytes()

    lines = scale.billion(10**9, Recipe().data, 16)
    assert {line["rank"] for line in lines} == {0, 512, 1023}
    assert max(line["peak_mb"] for line in lines) < 1
    table = scale.Unreadable(10)
    for asking in (lambda: np.asarray(table), lambda: table[:], lambda: table["label"]):
        with pytest.raises(RuntimeError, match="whole table"):
            asking()
