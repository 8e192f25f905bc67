"""`bench.py explain`: the model, the changes and the report against figures worked out by hand; its stages."""

import ctypes
import gc
import mmap
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from penstock.benchmarks.explain import arithmetic, reading, report, stages
from penstock.benchmarks.explain import model as explain_model
from penstock.benchmarks.explain.model import LOADING, Change, Cost, Model, applied, best, candidates, smaller_copies
from penstock.benchmarks.explain.stages import Timings
from penstock.benchmarks.measure import Sample
from penstock.benchmarks.options import BenchSetup
from penstock.model.config import ModelConfig
from penstock.pipeline.config import DataConfig
from penstock.recipes import Recipe, TrainConfig, config
from penstock.recipes.phases import PhasesConfig
from penstock.shards.format import ShardSet, Split
from penstock.training import environment
from penstock.training.distributed import World

MS = 1e-3
COSTS = {"read": Cost(0.1 * MS, 0.1 * MS), "decode": Cost(0.7 * MS, 1.4 * MS), "resize": Cost(0.2 * MS, 0.4 * MS),
         "compute": Cost(2 * MS, 3 * MS)}  # fmt: skip
ON_CPU = Model(COSTS, cores=2, on_gpu=False)
CPU = World(0, 0, 1, 1, torch.device("cpu"))
GPU = World(0, 0, 1, 1, torch.device("cuda", 0))


@pytest.fixture(autouse=True)
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bf16 the best precision on any machine."""
    monkeypatch.setattr(environment, "best_precision", lambda device: "bf16")


def given(dataset: ShardSet, world: World = CPU, **recipe: Any) -> BenchSetup:
    recipe = {"data": DataConfig(image_size=32)} | recipe
    return BenchSetup(Recipe(**recipe), dataset, world, 4, {})


def test_on_a_cpu_stages_share_threads_and_cores() -> None:
    assert ON_CPU.bounds() == pytest.approx(
        {"decode threads": 0.9 * MS, "main thread": 2.1 * MS, "cores": 4.9 / 2 * MS, "communication": 0}
    )
    assert ON_CPU.rate() == pytest.approx(1000 / 2.45)
    assert ON_CPU.rate(LOADING) == pytest.approx(1000 / 0.95), (
        "CPU seconds of reading count beside decode's and resize's"
    )
    assert ON_CPU.bottleneck == "compute"
    assert ON_CPU.headroom() == pytest.approx({"decode": 2 / 0.7, "resize": 10, "read": 20})


def test_on_a_gpu_the_slowest_stage_is_the_ceiling() -> None:
    model = Model(COSTS | {"h2d": Cost(2.5 * MS, 0)}, cores=16, on_gpu=True)
    assert model.rate() == pytest.approx(400)
    assert model.rate(LOADING) == pytest.approx(1000 / 0.7)
    assert model.bottleneck == "h2d"


def test_a_gain_ends_where_another_bound_begins() -> None:
    faster = {"compute": (0.1, 0.1)}
    assert ON_CPU.gain(faster) == pytest.approx(2.45 / 1.1), "cores: (0.1 + 1.4 + 0.4 + 0.3) / 2"
    assert ON_CPU.gain(faster | {"decode": (0.5, 0.5)}) == pytest.approx(2.45 / 0.75)
    assert ON_CPU.gain({"h2d": (0.5, 0.5)}) == 1


def options(model: Model, setup: BenchSetup, fits: bool = True) -> dict[str, Change]:
    return {change.option: change for change in candidates(model, setup, fits)}


def limited_by(stage: str, on_gpu: bool = True) -> Model:
    return Model(COSTS | {stage: Cost(9 * MS, 1 * MS)}, 2, on_gpu)


@pytest.mark.parametrize(
    ("model", "world", "overrides"),
    [
        (limited_by("decode", on_gpu=False), CPU, ["data.threads=1"]),
        (limited_by("read"), GPU, []),
        (limited_by("compute"), GPU, ["train.precision=fp32"]),
        (limited_by("compute"), GPU, ["model.compile=true", "model.compile_mode=default"]),
        (limited_by("decode"), GPU, []),
        (limited_by("decode"), GPU, ["data.gpu_decode=off"]),
    ],
)
def test_options_are_what_the_recipe_takes(
    model: Model, world: World, overrides: list[str], dataset: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed to be typed and what `--apply` does are one and the same."""
    monkeypatch.setattr(explain_model, "threads_per_rank", lambda threads, ranks: 3)
    setup = BenchSetup(config.load_config(Recipe, None, overrides), dataset, world, 4, {})
    found = [change for change in candidates(model, setup, fits=True) if change.settings]
    for change in found:
        option = change.option.removeprefix("--set ")
        assert config.load_config(Recipe, None, [*overrides, option]) == applied(setup, change).recipe
    assert len(found) >= 2


def test_candidates_gain_what_the_model_says(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_model, "threads_per_rank", lambda threads, ranks: 2)
    setup = given(dataset, data=DataConfig(threads=1))
    slow = limited_by("read", on_gpu=False)
    found = options(slow, setup)
    assert found["--set data.threads=2"].factors == {"decode": (0.5, 1.0), "resize": (0.5, 1.0)}
    assert found["--set data.cache=encoded"].factors == {"read": (pytest.approx(1 / 9), 1.0)}
    assert found["--set data.image_size=160"].factors["compute"] == pytest.approx(((160 / 224) ** 2,) * 2)
    assert found["--set data.image_size=160"].changes_result
    assert "--set data.cache=encoded" not in options(slow, setup, fits=False), "it does not fit"
    one_size = given(dataset, data=DataConfig(), model=ModelConfig(name="vit_b_16"))
    assert "--set data.image_size=160" not in options(slow, one_size), "the network takes no other"


# 2 cores: JPEGs of 469×401, cifar_resnet8 at 32 px; loader 965, compute 1,078 images/s, training 438
LARGE = Model({"read": Cost(0.02 * MS, 0.02 * MS), "decode": Cost(0.86 * MS, 1.72 * MS),
               "resize": Cost(0.16 * MS, 0.31 * MS), "compute": Cost(MS / 1.078, 1.9 * MS)}, 2, False)  # fmt: skip


def sized(dataset: ShardSet, height: int, width: int) -> ShardSet:
    """The dataset, with images of this size in its table."""
    split = dataset.split("train")
    samples = split.samples.copy()
    samples["height"], samples["width"] = height, width
    return cast(ShardSet, FakeSet(dataset, replace(split, samples=samples)))


class FakeSet:
    def __init__(self, dataset: ShardSet, split: Split) -> None:
        self.classes, self._split = dataset.classes, split

    def split(self, name: str) -> Split:
        return self._split


def test_decoding_once_is_advised_where_the_pixels_fit(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = given(sized(dataset, 401, 469))
    monkeypatch.setattr(explain_model, "available_bytes", lambda: 3 * 401 * 469 * 90 * 2)
    assert "--set data.cache=pixels" not in options(LARGE, setup), "more than half of the memory"
    monkeypatch.setattr(explain_model, "available_bytes", lambda: 3 * 401 * 469 * 90 * 2 + 2)
    assert options(LARGE, setup)["--set data.cache=pixels"].factors == {"decode": (0.0, 0.0)}
    (change, gain), *_ = ranked(LARGE, setup)
    assert change.option == "--set data.cache=pixels"
    assert gain == pytest.approx(3.95 / 2.23), "cores: without 1.72 of 3.95 ms"
    stored = given(sized(dataset, 401, 469), data=DataConfig(cache="pixels"))
    costs = {stage: cost for stage, cost in LARGE.costs.items() if stage in ("resize", "compute")}
    found = options(LARGE._replace(costs=costs), stored)
    assert not any("cache" in option or "short-side" in option for option in found)


def test_smaller_images_are_advised_on_a_cpu_though_the_network_is_the_bottleneck(
    dataset: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain_model, "pixels_fit", lambda setup: False)
    assert LARGE.bottleneck == "compute"
    assert LARGE.rate(LOADING) == pytest.approx(965, rel=0.02)
    assert LARGE.rate() == pytest.approx(1.16 * 438, rel=0.02), "the model leaves out that threads get into their way"
    setup = given(sized(dataset, 401, 469))
    share = (64 / 401) ** 2
    (change, gain), *_ = ranked(LARGE, setup)
    assert change.option == "python -m shard_tools pack SOURCE OUT --short-side 64"
    assert change.factors["decode"] == pytest.approx((share, share))
    assert "enlarges images to data.val_resize_size = 256" in change.why
    assert 571 / 438 < gain < 1.8, "1.3 times was measured"
    crowded = LARGE._replace(costs=LARGE.costs | {"compute": Cost(20.8 * MS, 1.9 * MS)})  # by the main thread
    assert ranked(crowded._replace(train_s=20.8 * MS), setup) == []
    (change, gain), *_ = ranked(crowded._replace(train_s=32.3 * MS), setup)
    assert "--short-side" in change.option
    assert gain == pytest.approx(32.3 / (32.3 - (32.3 - 20.8) * (1 - share) * 1.72 / 2.05)), (
        "48 images/s alone, 31 in training"
    )
    on_gpu = options(LARGE._replace(on_gpu=True), setup)
    assert not any("--short-side" in option for option in on_gpu), "engines of their own: decoding is not what limits"


def ranked(model: Model, setup: BenchSetup) -> list[tuple[Change, float]]:
    return best(model, candidates(model, setup, fits=True), lambda change: 1.0)


def test_of_images_that_are_small_already_nothing_is_gained(dataset: ShardSet) -> None:
    setup = given(sized(dataset, 20, 30))
    assert smaller_copies(setup, fits=False).factors == {"decode": (1.0, 1.0), "read": (1.0, 1.0)}
    half = smaller_copies(given(sized(dataset, 128, 500)), fits=False)
    assert half.factors == {"decode": (0.25, 0.25), "read": (0.25, 1.0)}


@pytest.mark.parametrize(
    ("trained", "validated", "expected"),
    [((224,), 256, 256), ((32,), 32, 32), ((32,), 256, 64), ((160, 192), 293, 293), ((288,), 256, 288)],
)
def test_images_are_packed_as_large_as_training_and_validation_need(
    trained: tuple[int, ...], validated: int, expected: int, dataset: ShardSet
) -> None:
    phases = PhasesConfig(start_epochs=(0, 1), image_size=trained) if len(trained) > 1 else PhasesConfig()
    data = DataConfig(image_size=trained[0], val_image_size=32, val_resize_size=validated)
    packed = smaller_copies(given(dataset, data=data, phases=phases), fits=True)
    assert packed.option.endswith(f"--short-side {expected}")


def test_a_compiled_network_that_limits_a_gpu_is_tried_with_graphs(dataset: ShardSet) -> None:
    def tried(
        on_gpu: bool, compile_it: bool, accumulation: int = 1, mode: Any = "default", world_size: int = 1
    ) -> list[str]:
        world = replace(GPU if on_gpu else CPU, world_size=world_size, local_world_size=world_size)
        net = ModelConfig(compile=compile_it, compile_mode=mode)
        setup = given(dataset, world, model=net, train=TrainConfig(accumulation=accumulation))
        return [option for option in options(limited_by("compute", on_gpu), setup) if "compile" in option]

    graphs = ["--set model.compile_mode=reduce-overhead"]
    assert tried(on_gpu=True, compile_it=True) == graphs
    assert tried(on_gpu=True, compile_it=False) == ["--set model.compile=true"]
    assert tried(on_gpu=False, compile_it=True) == tried(on_gpu=False, compile_it=False) == [], (
        "on a CPU no rule applies"
    )
    assert tried(on_gpu=True, compile_it=True, accumulation=2) == [], "CUDA graphs do not work with accumulation"
    assert tried(on_gpu=True, compile_it=True, mode="auto") == [], "on one GPU it already uses them"
    assert tried(on_gpu=True, compile_it=True, mode="auto", world_size=2) == graphs


def test_half_precision_is_tried_where_a_gpu_computes_in_float32(dataset: ShardSet) -> None:
    setup = given(dataset, GPU, train=TrainConfig(precision="fp32"))
    assert "--set train.precision=bf16" in options(limited_by("compute"), setup)
    assert "--set train.precision=bf16" not in options(limited_by("decode"), setup)
    assert "--set train.precision=bf16" not in options(limited_by("compute"), given(dataset, GPU))


@pytest.mark.parametrize(("way", "other"), [("whole", "off"), ("off", "whole")])
def test_where_decoding_limits_a_gpu_the_cores_are_tried_in_its_place(way: Any, other: str, dataset: ShardSet) -> None:
    found = options(limited_by("decode"), given(dataset, GPU, data=DataConfig(gpu_decode=way, hw_decoder_load=0.8)))
    assert f"--set data.gpu_decode={other}" in found
    loads = [option.partition("load=")[2] for option in found if "hw_decoder_load" in option]
    assert loads == (["0.4", "1.0"] if way == "whole" else [])


def test_what_leaves_the_training_as_it_is_comes_first() -> None:
    compute = [Change("a", "", {"compute": (0.5, 0.5)}, changes_result=True), Change("b", "", {"compute": (0.9, 0.9)}),
               Change("c", "", {"compute": (0.8, 0.8)}), Change("d", "", {"read": (0.99, 1)}),
               Change("e", "", None)]  # fmt: skip
    assert [change.option for change, _ in best(ON_CPU, compute, lambda change: 1.0, 3)] == ["c", "b", "a"]
    (change, gain), *_ = best(ON_CPU, compute, lambda change: 2.0)
    assert (change.option, change.factors) == ("e", {"compute": (0.5, 0.5)}), "as it was measured"
    assert gain == ON_CPU.gain({"compute": (0.5, 0.5)})
    assert best(ON_CPU, compute[3:], lambda change: 1.0) == []


def resident(split: Split) -> int:
    """Pages of its shards in memory, by mincore(2)."""
    libc, pages = ctypes.CDLL(None), 0
    for shard in range(len(split.shards)):
        with open(split.shard_path(shard), "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            view = np.frombuffer(mapped, np.uint8)
            there = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
            address, length = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view))
            assert libc.mincore(address, length, ctypes.c_void_p(there.ctypes.data)) == 0
            pages += int((there & 1).sum())
            del view
    return pages


def test_shards_are_out_of_memory_when_they_are_read_from_the_disk(
    dataset: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()  # loaders of other tests, which have the shards mapped
    split, left, drop = dataset.split("train"), [], reading.drop
    reading.load(split)
    before = resident(split)
    assert before == sum(-(-shard.bytes // mmap.PAGESIZE) for shard in split.shards)
    drop(split)
    if resident(split) == before:
        pytest.skip("this file system keeps its files in memory")

    def watched(split: Split) -> None:
        assert resident(split) > 0, "the turn before has read it"
        drop(split)
        left.append(resident(split))

    monkeypatch.setattr(reading, "drop", watched)
    reading.load(split)
    program = reading.FromDisk(given(dataset))
    for seconds in (10, 0, 10):  # 0: it ends in mid-epoch
        assert program.run(seconds).images_per_s > 0
    assert left == [0, 0, 0], "no reader has the shards mapped"


def test_a_part_of_a_split_has_whole_shards(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    split = dataset.split("train")
    assert reading.part(split) is split
    monkeypatch.setattr(reading, "PART_BYTES", split.shards[0].bytes + split.shards[1].bytes)
    some = reading.part(split)
    assert len(some.shards) == 2
    assert len(some) == split.shards[0].samples + split.shards[1].samples


def test_reading_touches_the_shards_pages_and_no_copies(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []

    def touch(views: list[np.ndarray]) -> None:
        touched.extend(view.__array_interface__["data"][0] for view in views)

    monkeypatch.setattr(reading, "_touch", touch)
    reader = reading.Reader(given(dataset))
    batch = next(reader.iter_epoch(0))
    there = [view.__array_interface__["data"][0] for view in reader._reader.views(batch.sample_ids.numpy())]
    assert sorted(touched) == sorted(there)
    reader.close()


def test_resizing_is_fed_what_was_decoded(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's outputs are kept while it continues: they must not change."""
    setup = given(dataset, data=DataConfig(image_size=32, threads=1))
    batches = stages.encoded_batches(setup)
    assert len(batches) > 4, "more than DALI decodes ahead"
    first, again = stages._decoder(setup, batches), stages._decoder(setup, batches)
    kept = [first.run()[0] for _ in batches]
    for output in kept:
        fresh = again.run()[0]
        for place in range(len(fresh)):
            np.testing.assert_array_equal(output.at(place), fresh.at(place))
    program = stages.build("resize", setup, batches)
    assert program.name == "resize"
    assert program.run(0.05).images_per_s > 0


def timings(rates: dict[str, float], fits: bool = True) -> Timings:
    samples = {name: [Sample(0.9 * rate), Sample(rate), Sample(1.1 * rate)] for name, rate in rates.items()}
    return Timings(samples, dict.fromkeys(rates, MS), fits, [])


RATES = {"read, disk": 1e6, "read, cached": 1e4, "decode": 1428.0, "resize": 5000.0, "libjpeg-turbo": 1500.0,
         "compute": 500.0, "loader": 1000.0, "train": 390.0}  # fmt: skip


def test_the_chart_fits_80_columns_and_marks_the_bottleneck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = report.chart(timings(RATES), ON_CPU)
    assert max(map(len, lines)) <= 80
    (marked,) = [line for line in lines if "bottleneck" in line]
    assert marked.split()[0] == "compute"
    bars = {line[2:15].strip(): line.count("█") for line in lines}
    assert bars["libjpeg-turbo"] == pytest.approx(3 * bars["compute"], abs=2), "1500 images/s and 500"
    assert "▶" in lines[0], "a bar of 2,000 times is cut off"


def test_the_text_has_the_verdict_and_the_arithmetic() -> None:
    assert report.bottleneck(ON_CPU) == (
        "The bottleneck is compute: by itself, training the network on a batch in memory runs at 500 images/s."
    )
    lines = list(report.verdict(timings(RATES), ON_CPU))
    assert lines[0] == "Headroom, in multiples of the bottleneck's images/s: decode 2.9×, resize 10.0×, read 20.0×."
    assert "train: the model predicts 408 images/s (limited by: cores). Measured: 390 images/s, 96%." in lines
    shared = "On a CPU all stages share the cores, so decoding slows training even if training never waits for data."
    assert shared in lines
    assert shared not in report.verdict(timings(RATES), ON_CPU._replace(on_gpu=True))
    compared = "libjpeg-turbo decodes 1,500 whole images/s; decode (regions) reaches 95% of that."
    assert compared in report.notes(timings(RATES))


def test_the_advice_names_each_change_and_its_gain() -> None:
    changes = [(Change("--set a.b=1", "does less", None), 1.5), (Change("--set c.d=2", "", None, {}, True), 1.25)]
    assert report.advice(changes) == [
        "Most worth trying:",
        "  1. --set a.b=1",
        "     expected 1.50 times as fast: does less",
        "  2. --set c.d=2",
        "     expected 1.25 times as fast:  (changes the training result)",
    ]
    assert report.advice([]) == ["Most worth trying: nothing. By the model, no change would gain 3% or more."]
    assert set(report.WORK) == set(explain_model.STAGES)


def test_of_images_that_are_decoded_once_no_reading_is_told() -> None:
    stored = {name: rate for name, rate in RATES.items() if name in ("resize", "compute", "loader", "train")}
    said = " ".join(report.notes(timings(stored, fits=False)))
    assert "after the first epoch nothing is read" in said
    assert "URL" not in said
    assert "does not fit" not in said


def test_arithmetic_is_the_published(dataset: ShardSet) -> None:
    """ResNet-50 at 224 px: 4.09 G multiply-adds forward (torchvision's table). Training takes three times that, except
    in the first layer, which passes no gradient on."""
    setup = given(dataset, data=DataConfig(), model=ModelConfig(name="resnet50"))
    setup = setup._replace(dataset=cast(ShardSet, SimpleNamespace(classes=range(1000))))
    assert arithmetic.training_flops(setup) == pytest.approx(24.3e9, rel=0.005)
    a_second = arithmetic.peak_flops_per_s(setup)
    assert 1e9 < a_second < 1e13, "of a CPU"
    line = report.mfu(24.3e9, 486e9, 5.0)
    most = "24.3 GFLOP per image allow at most 20 images/s"
    assert line == (f"Arithmetic: 0.486 TFLOP/s in a matrix product and {most}; compute reaches 25% of that (MFU).")


def test_of_two_readings_the_one_that_counts_is_marked(dataset: ShardSet) -> None:
    slow = RATES | {"read, disk": 20.0, "read, cached": 10.0}
    for rates, expected in (
        (slow, "read, cached"),
        ({k: v for k, v in slow.items() if "cached" not in k}, "read, disk"),
    ):
        found = timings(rates, fits="read, cached" in rates)
        model = explain_model.model_of(found, given(dataset))
        assert model.bottleneck == "read"
        assert 1 / model.costs["read"].clock_s == pytest.approx(rates[expected])
        (marked,) = [line for line in report.chart(found, model) if "bottleneck" in line]
        assert expected in marked
