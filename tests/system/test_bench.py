"""`bench.py` and its modules in `benchmarks/`: figures are compared with known ones, and the JSON can be read."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import simplejpeg
import torch
from click.testing import CliRunner

from penstock import bench
from penstock.benchmarks import earlier, images, programs, record, throughput, tune
from penstock.benchmarks.options import BenchSetup
from penstock.pipeline.config import DataConfig
from penstock.recipes import Recipe, config, machine, recipe_file
from penstock.shards.format import ShardSet
from penstock.training.distributed import World
from tests.common import forked

SMALL = ["--batch-size", "8", "--image-size", "32", "--seconds", "0.1", "--repeats", "3", "--device", "cpu"]
NETWORK = ["--recipe", "demo", "--set", "model.name=cifar_resnet8"]

pytestmark = pytest.mark.usefixtures("short_turns")


def run(*arguments: object) -> str:
    """Return the output of `bench.py`, both streams."""
    result = CliRunner().invoke(bench.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("loader", ["dali", "reference", "synthetic"])
def test_loader_writes_its_figures(loader: str, dataset_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "result.json"
    # In a process of its own: the reference loader forks, which the threads of earlier tests do not always survive.
    words = ["bench.py", "loader", "--data", dataset_dir, "--loader", loader, "--threads", 1, "--json", file, *SMALL]
    done = forked.run(words)
    assert done.returncode == 0, done.stderr
    result = record.read(file)
    assert result.benchmark == "loader"
    (name, figures), expected = next(iter(result.programs.items())), {"loader": loader, "image_size": 32}
    assert name == loader
    assert figures.data_wait is not None
    assert len(figures.images_per_s) == len(figures.data_wait) == 3
    assert min(figures.data_wait) > 0.5, "a loader without training is all waiting"
    assert result.settings | expected | {"batch_size": 8, "threads": 1, "ranks": 1} == result.settings
    assert result.env["packages"]["torch"]
    assert 0 < (figures.first_batch_s or 0) < 60
    assert 100 < (figures.memory_mb or 0) < 10_000, "torch and DALI alone take hundreds of MB"


@pytest.mark.parametrize("kind", ["compute", "train"])
def test_steps_are_measured(kind: str, dataset_dir: Path, tmp_path: Path) -> None:
    run(kind, "--data", dataset_dir, *NETWORK, "--out", tmp_path, *SMALL)
    (file,) = tmp_path.glob(f"{kind}-*.json")
    result = record.read(file)
    assert result.settings["model"] == "cifar_resnet8"
    (figures,) = result.programs.values()
    assert max(figures.data_wait or [1]) < 0.9


def test_two_loaders_are_compared_in_turn(dataset_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "pair.json"
    pair = ["loader", "--data", dataset_dir, "--loader", "synthetic", "--against", "dali"]
    printed = run(*pair, "--json", file, *SMALL)
    result = record.read(file)
    (ratio,) = result.ratios.values()
    assert not any(figures.memory_mb for figures in result.programs.values()), "memory would cover both programs"
    assert ratio.min <= ratio.low <= ratio.median
    assert ratio.median > 1, "making no images is faster than decoding them"
    assert f"synthetic / dali: {ratio.median:.2f}, 95% interval" in printed


def test_an_earlier_result_is_compared_with(dataset_dir: Path, tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("first.json", "second.json", "other.json"))
    command = ["loader", "--data", dataset_dir, *SMALL]
    run(*command, "--json", first)
    again = [*command, "--threads", "2"]
    run(*again, "--compare", first, "--json", second)
    now, then = record.read(second), record.read(first)
    assert list(now.ratios) == [f"dali / dali of {first}"]
    (ratio,) = now.ratios.values()
    assert ratio.median == pytest.approx(now.programs["dali"].median / then.programs["dali"].median)
    record.write(other, replace(then, env=then.env | {"gpu": "Another GPU"}))  # type: ignore[arg-type]
    refused = CliRunner().invoke(bench.main, [*map(str, again), "--compare", str(other)])
    assert refused.exit_code == 1
    assert f"{other}: comes from a different device (GPU Another GPU there, None here)" in refused.output
    assert "Another GPU" not in run(*again, "--compare", other, "--force")


def test_settings_that_differ_from_an_earlier_results_are_told() -> None:
    def result(rate: float, **settings: int) -> record.Result:
        made = record.build("loader", settings, {}, {}, [])
        return replace(made, programs={"a": record.Figures(images_per_s=[rate])})

    new, old = result(30, threads=2, image_size=32, seconds=5), result(20, threads=1, image_size=32, seconds=9)
    found = earlier.compared(new, old, Path("old.json"))
    assert found.warnings == ["threads: 1 in old.json, 2 here"]
    assert found.ratios["a / a of old.json"].median == 1.5
    with pytest.raises(ValueError, match="no program in common"):
        earlier.compared(new, replace(old, programs={}), Path("old.json"))


def test_copies_are_of_all_bytes(dataset_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies of `h2d`, made on the CPU, where memory cannot be pinned."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    recipe = Recipe(data=DataConfig(image_size=32))
    world = World(0, 0, 1, 1, torch.device("cpu"))
    setup = BenchSetup(recipe, ShardSet.open(dataset_dir), world, 4, {"image_size": 32})
    built = [programs.build_copies(recipe, setup.dataset, world, 4, pinned) for pinned in (True, False)]
    result = throughput.time_programs("h2d", built, setup, 0.05, 2, {})
    assert list(result.programs) == ["pinned", "pageable"]
    for figures in result.programs.values():
        expected = [rate * (3 * 32 * 32 * 4 + 8) / 1e9 for rate in figures.images_per_s]
        assert figures.gigabytes_per_s == pytest.approx(expected), "float32 and an int64 label"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["h2d"], "h2d needs a GPU"),
        (["loader", "--compare", "nowhere.json"], "nowhere.json: cannot be read"),
        (["loader", "--data", "synthetic:469"], "expected synthetic:WIDTHxHEIGHT"),
        (["loader", "--data", "synthetic:5x469"], "16 to 2048"),
        (["loader", "--data", "synthetic:469x401x3"], "expected synthetic:"),
        (["loader", "--json", "README.md/x.json"], "README.md/x.json: cannot be written"),
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
    images.make(tmp_path / "again", 120, 90)
    assert ShardSet.open(tmp_path / "again").fingerprint == made.fingerprint
    monkeypatch.setattr(images, "make", None)
    assert images.ensure("synthetic:120x90") == Path("data/synthetic-120x90"), "made once"


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


LADDERS = {"threads": [1, 2, 4, 8], "prefetch": [1, 2, 3, 4], "read_ahead": [0, 2, 4, 8]}
START = {"threads": 8, "prefetch": 2, "read_ahead": 4}


def rate(settings: dict[str, int]) -> float:
    """Best at 2 threads and prefetch 4. read_ahead 8 gains only 2 %, below the threshold."""
    threads = {1: 0.6, 2: 1.0, 4: 0.9, 8: 0.8}[settings["threads"]]
    return 1000 * threads * (1 + 0.1 * settings["prefetch"]) * (1.02 if settings["read_ahead"] == 8 else 1.0)


def versus(ours: dict[str, int], theirs: dict[str, int]) -> Iterator[tuple[float, float]]:
    return repeat((rate(ours), rate(theirs)))


def test_tuning_climbs_to_the_best_and_ignores_noise() -> None:
    found = tune.search(START, LADDERS, versus)
    assert found.finished
    assert found.settings == {"threads": 2, "prefetch": 4, "read_ahead": 4}
    tried = [tuple(sorted({**START, t.setting: t.value}.items())) for t in found.trials if not t.accepted]
    assert len(found.trials) < 4 * 4 * 4 / 3, "a coordinate search tries few of all combinations"
    assert tried
    drifting = iter([0.99, 1.2] * 1000)  # in half of the turns another program ran
    found = tune.search(START, LADDERS, lambda ours, theirs: ((one, 1.0) for one in drifting))
    assert found.settings == START


def test_tuning_stops_when_its_time_is_up() -> None:
    """Time may be up before a trial or during it. A trial that is cut off is shown as undecided, and the search
    continues."""
    left = iter([5, 2, 0])
    found = tune.search(START, LADDERS, lambda ours, theirs: islice(versus(ours, theirs), next(left)))
    assert not found.finished
    assert [(trial.turns, trial.decided, trial.accepted) for trial in found.trials] == [
        (3, True, True),
        (2, False, False),
    ]
    assert found.settings == START | {found.trials[0].setting: found.trials[0].value}


@pytest.mark.parametrize(
    ("ratios", "taken", "turns"),
    [
        ([0.7, 9.0], False, 1),  # clearly slower
        ([0.99, 1.0, 9.0], False, 2),  # slower twice: it can no longer be accepted
        ([1.04, 1.05, 1.06, 0.5], True, 3),  # three agree
        ([1.02, 1.08, 1.08, 1.08, 1.08], True, 5),
        ([0.99, 1.08, 1.08, 1.08, 1.08], True, 5),
        ([1.02, 1.01, 1.02], False, 3),  # the median of five turns can no longer exceed MIN_GAIN
    ],
)
def test_a_trial_ends_as_soon_as_it_is_decided(ratios: list[float], taken: bool, turns: int) -> None:
    verdicts = [tune.verdict(ratios[: number + 1], 5) for number in range(turns)]
    assert verdicts == [None] * (turns - 1) + [taken]


def test_one_turn_a_trial_is_enough_to_decide() -> None:
    found = tune.search(START, LADDERS, versus, turns=1)
    assert found.settings == {"threads": 2, "prefetch": 4, "read_ahead": 4}


def test_the_batch_size_is_told_and_not_written() -> None:
    def versus(ours: dict[str, int], theirs: dict[str, int]) -> Iterator[tuple[float, float]]:
        rates = {16: 100, 32: 200, 64: 220, 128: 221}
        return repeat((rates[ours["batch_size"]], rates[theirs["batch_size"]]))

    found = tune.search({"threads": 2, "batch_size": 32}, {"batch_size": [16, 32, 64, 128]}, versus)
    assert "with 64 the loader is 1.10 times as fast" in tune.batch_advice(found, 32)
    found = tune.search({"batch_size": 64}, {"batch_size": [32, 64, 128]}, versus)
    assert "No other is faster in the loader (tried: 128, 32)." in tune.batch_advice(found, 64)
    found = tune.search({"batch_size": 64}, {"batch_size": [64, 128]}, lambda *_: iter([(100.0, 99.0)]))  # undecided
    assert tune.batch_advice(found, 64) == "batch size: 64. There was no time to decide on another."


def test_decoded_images_are_told_and_not_written(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = BenchSetup(Recipe(), dataset, cast(World, None), 4, {})
    trial = tune.Trial(tune.PIXELS, 1, 300.0, 100.0, 3.0, True, 5, True)
    found = tune.Found({}, [trial])
    assert tune.pixels_advice(setup, found) == (
        "data.cache=pixels: the loader is 3.00 times as fast from the second epoch on, with 0.0 GB of memory. "
        "To use it: --set data.cache=pixels"
    )
    assert tune.pixels_advice(setup, tune.Found({}, [replace(trial, ratio=1.0, accepted=False)])).endswith(": no gain")
    assert tune.pixels_advice(setup, tune.Found({})) == ""
    monkeypatch.setattr("penstock.benchmarks.explain.model.available_bytes", lambda: 1000)
    assert "more than half of the free memory" in tune.pixels_advice(setup, found)
    pixels = replace(Recipe(), data=DataConfig(cache="pixels"))
    assert tune.pixels_advice(setup._replace(recipe=pixels), found) == ""
    assert len(tune.few(dataset, "train").split("train")) == len(dataset.split("train"))


def test_tune_writes_a_file_that_the_next_run_takes(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--data", dataset_dir, "--batch-size", "8", "--image-size", "32", "--device", "cpu"]
    printed = run("tune", *small, "--seconds", "1", "--turn", "0.1", "--repeats", "1", "--json", "tune.json")
    recipe, line = machine.load_recipe(recipe_file("rn50-90ep"), (), device="cpu")
    options = printed.splitlines()[-1].split("--set ")[1:]
    assert config.load_config(Recipe, recipe_file("rn50-90ep"), [option.strip() for option in options]) == recipe
    assert line.startswith("machine.toml: data.threads=")
    assert options[0].strip() in Path("machine.toml").read_text(), "the header says the same"
    found = record.read(Path("tune.json")).more
    assert found["trials"]
    assert f"data.threads={found['found']['threads']}" in line

    assert line in run("loader", *small, "--seconds", "0.1", "--repeats", "1")
    assert "not used" in run("loader", *small, "--seconds", "0.1", "--repeats", "1", "--no-machine-config")
