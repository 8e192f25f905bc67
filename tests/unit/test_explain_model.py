"""`bench.py explain`: the model, the counts, the limits and the advice against figures by hand or published ones."""

import json
import mmap
import os
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from benchmarks.explain import advice, limits, measuring, network, page_cache, reading, report, stages
from benchmarks.explain.advice import Change, Facts
from benchmarks.explain.limits import Shrunk
from benchmarks.explain.measuring import Findings
from benchmarks.explain.model import LOADING, Cost, Model
from benchmarks.explain.network import Network
from benchmarks.measure import Sample
from benchmarks.options import Setup
from model.config import ModelConfig
from model.networks import list_networks
from pipeline.augment import AugmentConfig
from pipeline.config import DataConfig
from recipes import Recipe, TrainConfig, config
from recipes.phases import PhasesConfig
from shards.format import ShardSet
from tests.conftest import picture
from training import distributed
from training.distributed import World

MS = 1e-3
COSTS = {"read": Cost(0.1 * MS, 0.1 * MS), "decode": Cost(0.7 * MS, 1.4 * MS), "resize": Cost(0.2 * MS, 0.4 * MS),
         "compute": Cost(2 * MS, 3 * MS)}  # fmt: skip
ON_CPU = Model(COSTS, cores=2, on_gpu=False)


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
    assert ON_CPU.gain(faster, {"decode": (0.5, 0.5)}) == pytest.approx(2.45 / 0.75)
    assert ON_CPU.gain({"h2d": (0.5, 0.5)}) == 1


def test_resnet_50_takes_the_published_flops_and_bytes() -> None:
    counted = network.count(ModelConfig(name="resnet50"), 1000, 224)
    assert counted.num_params == 25_557_032
    assert counted.flops == pytest.approx(24.3e9, rel=0.005)
    assert counted.forward_flops == pytest.approx(2 * 4.09e9, rel=0.005), "4.09 G multiply-adds, torchvision's table"
    published = {"eager": 475e6, "fused": 353e6, "ideal": 197e6}
    found = {level: counted.image_bytes(level, torch.bfloat16) for level in published}
    assert found == pytest.approx(published, rel=0.02)


def test_a_transformer_gets_flops_and_no_bytes() -> None:
    counted = network.count(ModelConfig(name="vit_b_16"), 1000, 224)
    assert counted.elements == {}
    assert counted.own_size == 224
    assert counted.forward_flops == pytest.approx(2 * 17.56e9, rel=0.01), "torchvision's table"


def test_a_smaller_network_is_of_the_family() -> None:
    full = network.count(ModelConfig(name="resnet34"), 10, 64)
    smaller = network.smaller(full, ModelConfig(name="resnet34"), 10, list_networks)
    assert smaller is not None
    assert smaller.name == "resnet18"
    assert smaller.flops / full.flops == pytest.approx(1.81 / 3.66, rel=0.03), "torchvision's table"
    assert network.smaller(full, ModelConfig(name="resnet18"), 10, list_networks) is None


NETWORK = Network("resnet50", 224, 24.3e9, 8.2e9, {"eager": 240e6, "fused": 176e6, "ideal": 98e6}, 25_000_000, None)


def facts(model: Model = ON_CPU, recipe: Recipe | None = None, **given: Any) -> Facts:
    known: dict[str, Any] = {
        "network": NETWORK, "batch_size": 100, "world_size": 1, "threads": 2, "torch_threads": 2, "cores": 2,
        "peak": {"fp32": 1e11}, "precision": "fp32", "best_precision": "fp32", "bandwidth": 1e10, "num_train": 10_000,
    }  # fmt: skip
    return Facts(recipe=recipe or Recipe(), model=model, **(known | given))


ALL = [
    facts(
        threads=1, torch_threads=1, shrunk=Shrunk(0.3, 0.3), short_side=256, smaller=NETWORK._replace(name="resnet18")
    ),
    facts(Model(COSTS | {"read": Cost(5 * MS, 0.1 * MS)}, 2, False), sequential_s=1 * MS, fits=False),
    facts(Model(COSTS | {"read": Cost(5 * MS, 0.1 * MS)}, 2, True), best_precision="bf16"),
]


@pytest.mark.parametrize("known", ALL)
def test_options_are_what_the_recipe_takes(known: Facts) -> None:
    """What is printed to be typed and what `--apply` does are one and the same."""
    found = [*advice.changes(known), *advice.trials(known)]
    for change in found:
        if change.settings:
            (option,) = [change.option.removeprefix("--set ")]
            assert config.load_config(Recipe, None, [option]) == advice.applied(Recipe(), change.settings)
    assert any(change.settings for change in found)


def by_option(known: Facts) -> dict[str, Change]:
    return {change.option: change for change in advice.changes(known)}


def test_rules_give_what_the_model_says() -> None:
    first, second, third = map(by_option, ALL)
    assert first["--set data.threads=2"].factors["decode"] == (0.5, 1.0)
    packing = "python -m shard_tools pack SOURCE OUT --short-side 256"
    assert first[packing].factors == {"decode": (0.3, 0.3), "read": (1.0, 1.0)}
    assert first["--set data.image_size=160"].factors["compute"][0] == pytest.approx((160 / 224) ** 2)
    step_share = 5 * 4 * 25e6 / 1e10 / 100 / (2 * MS)  # 50 ms of memory traffic a step of 100 images
    assert first["--set train.global_batch_size=512"].factors["compute"][0] == pytest.approx(1 - step_share / 2)
    assert second["--set data.order=block"].factors == {"read": (pytest.approx(0.2), 1.0)}
    assert "--set data.cache=encoded" not in second, "it does not fit"
    assert third["--set data.cache=encoded"].factors["read"][0] == pytest.approx(0.1 / 5)
    assert "--set model.compile=true" in third
    assert "--set model.compile=true" not in first, "on a CPU no rule knows"


# 2 cores: JPEGs of 469×401, cifar_resnet8 at 32 px; loader 965, compute 1,078 images/s, training 438
LARGE = Model({"read": Cost(0.02 * MS, 0.02 * MS), "decode": Cost(0.86 * MS, 1.72 * MS),
               "resize": Cost(0.16 * MS, 0.31 * MS), "compute": Cost(MS / 1.078, 1.9 * MS)}, 2, False)  # fmt: skip


def test_smaller_images_are_advised_on_a_cpu_though_the_network_is_the_bottleneck(
    dataset: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LARGE.bottleneck == "compute"
    assert LARGE.rate(LOADING) == pytest.approx(965, rel=0.02)
    assert LARGE.rate() == pytest.approx(1.16 * 438, rel=0.02), "the model leaves out that threads get into their way"
    monkeypatch.setattr(limits, "shrunk", lambda views, short_side: Shrunk(0.06, 0.09))
    monkeypatch.setattr(network, "smaller", lambda *given: None)
    held: Any = SimpleNamespace(views=[[]])
    on = opened(dataset)
    recipe = replace(on.recipe, data=replace(on.recipe.data, threads=2))
    known = measuring._with_details(facts(LARGE, recipe), on._replace(recipe=recipe), held)
    (change, gain), *_ = advice.best(LARGE, advice.changes(known))
    assert change.option == "python -m shard_tools pack SOURCE OUT --short-side 64"
    assert "enlarges images to data.val_resize_size = 256" in change.why
    assert 571 / 438 < gain < 1.8, "1.3 times was measured"
    crowded = Model(LARGE.costs | {"compute": Cost(20.8 * MS, 1.9 * MS)}, 2, on_gpu=False)  # by the main thread
    assert advice.best(crowded, advice.changes(replace(known, model=crowded, train_s=20.8 * MS))) == []
    (change, gain), *_ = advice.best(crowded, advice.changes(replace(known, model=crowded, train_s=32.3 * MS)))
    assert "--short-side" in change.option
    assert gain == pytest.approx(32.3 / (32.3 - (32.3 - 20.8) * 0.94 * 1.72 / 2.05)), (
        "48 images/s alone, 31 in training"
    )
    on_gpu = measuring._with_details(facts(LARGE._replace(on_gpu=True), recipe), on, held)
    assert on_gpu.shrunk is None, "engines of their own: decoding is not what limits"


@pytest.mark.parametrize(
    ("trained", "validated", "expected"),
    [((224,), 256, 256), ((32,), 32, 32), ((32,), 256, 64), ((160, 192), 293, 293), ((288,), 256, 288)],
)
def test_images_are_packed_as_large_as_training_and_validation_need(
    trained: tuple[int, ...], validated: int, expected: int
) -> None:
    phases = PhasesConfig(start_epochs=(0, 1), image_size=trained) if len(trained) > 1 else PhasesConfig()
    data = DataConfig(image_size=trained[0], val_image_size=32, val_resize_size=validated)
    assert advice.short_side(Recipe(data=data, phases=phases)) == expected


def test_a_compiled_network_that_limits_a_gpu_is_tried_with_graphs() -> None:
    slow = COSTS | {"compute": Cost(9 * MS, 9 * MS)}

    def tried(
        on_gpu: bool, compile_it: bool, accumulation: int = 1, mode: Any = "default", world_size: int = 1
    ) -> list[str]:
        model = ModelConfig(compile=compile_it, compile_mode=mode)
        recipe = replace(Recipe(), model=model, train=TrainConfig(accumulation=accumulation))
        known = facts(Model(slow, 2, on_gpu), recipe, precision="bf16", world_size=world_size)
        return [change.option for change in advice.trials(known) if "compile" in change.option]

    assert tried(on_gpu=True, compile_it=True) == ["--set model.compile_mode=reduce-overhead"]
    assert tried(on_gpu=False, compile_it=True) == tried(on_gpu=True, compile_it=False) == []
    assert tried(on_gpu=True, compile_it=True, accumulation=2) == [], "which CUDA graphs do not go with"
    assert tried(on_gpu=True, compile_it=True, mode="auto") == [], "one GPU has them"
    assert tried(on_gpu=True, compile_it=True, mode="auto", world_size=2) == [
        "--set model.compile_mode=reduce-overhead"
    ]


@pytest.mark.parametrize(("way", "other"), [("whole", "off"), ("off", "whole")])
def test_where_decoding_limits_a_gpu_the_cores_are_tried_in_its_place(way: Any, other: str) -> None:
    slow = COSTS | {"decode": Cost(9 * MS, 9 * MS)}
    known = facts(Model(slow, 2, True), replace(Recipe(), data=DataConfig(gpu_decode=way)))
    assert f"--set data.gpu_decode={other}" in [change.option for change in advice.trials(known)]


def test_what_leaves_the_training_as_it_is_comes_first() -> None:
    compute = [Change("a", "", {"compute": (0.5, 0.5)}, other_training=True), Change("b", "", {"compute": (0.9, 0.9)}),
               Change("c", "", {"compute": (0.8, 0.8)}), Change("d", "", {"read": (0.99, 1)})]  # fmt: skip
    assert [change.option for change, _ in advice.best(ON_CPU, compute, 3)] == ["c", "b", "a"]
    assert advice.best(ON_CPU, compute[3:]) == []


def test_dropped_shards_are_out_of_memory_though_they_are_mapped(dataset: ShardSet) -> None:
    split = dataset.split("train")
    world = World(0, 0, 1, 1, torch.device("cpu"))
    page_cache.restore(split, world)
    if page_cache.drop(split, world) == 1:
        pytest.skip("this file system keeps its files in memory")
    with open(split.shard_path(0), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        page_cache.restore(split, world)
        assert sum(pages[::4096]) > 0
        assert page_cache.drop(split, world) == 0
        assert sum(pages[::4096]) > 0, "the map can still be read"


def test_a_part_of_a_split_has_whole_shards(dataset: ShardSet) -> None:
    split = dataset.split("train")
    assert page_cache.part(split) is split
    some = page_cache.part(split, split.shards[0].bytes + split.shards[1].bytes)
    assert len(some.shards) == 2
    assert len(some) == split.shards[0].samples + split.shards[1].samples


def test_smaller_copies_of_images_decode_faster(tmp_path: Path) -> None:
    image = picture(480, 640, np.random.default_rng(0))
    image.save(tmp_path / "x.jpg", quality=95)
    view = np.fromfile(tmp_path / "x.jpg", np.uint8)
    found = limits.shrunk([view] * 4, 120)
    assert found.decode < 0.7, "0.1 on a quiet machine"
    assert found.bytes < 0.3
    assert limits.shrunk([view] * 4, 480) == Shrunk(1, 1), "none is larger: nothing is timed"
    assert limits.shrunk([np.zeros(10, np.uint8)], 120) == Shrunk(1, 1), "what is no JPEG tells nothing"


def opened(dataset: ShardSet, **augment: Any) -> Setup:
    recipe = Recipe(data=DataConfig(image_size=32), augment=AugmentConfig(**augment))
    return Setup(recipe, dataset, World(0, 0, 1, 1, torch.device("cpu")), 4, {})


def test_a_trial_of_resizing_has_its_own_augmentation(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def build_resize(on: Setup, held: stages.Held) -> SimpleNamespace:
        seen.append({name.split(":")[1] for name in held.arrays[0] if ":" in name})
        return SimpleNamespace()

    monkeypatch.setattr(stages, "build_resize", build_resize)
    monkeypatch.setattr(measuring, "_pair_rates", lambda pair, *_: [[2.0], [1.0]])
    on = opened(dataset, rotation=30.0, rotation_filter="linear")
    change = advice._set("augment.rotation_filter", "nearest", "", {})
    monkeypatch.setattr(advice, "trials", lambda facts: [change])
    facts = cast(Facts, SimpleNamespace(model=SimpleNamespace(bottleneck="resize")))
    (found,) = measuring._tried(facts, on, stages.Held(on), 0.1, 1)
    assert seen == [{"warp_nearest"}, {"warp_linear"}]
    assert found.factors["resize"] == (0.5, 0.5)


def test_reading_touches_the_shards_pages_and_no_copies(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []

    def touch(views: list[np.ndarray]) -> None:
        touched.extend(view.__array_interface__["data"][0] for view in views)

    monkeypatch.setattr(reading, "_touch", touch)
    split = dataset.split("train")
    program = reading.Reading(opened(dataset), split, cold=False)
    batch = next(program._loader.iter_epoch(0))
    there = [view.__array_interface__["data"][0] for view in program._loader._reader.views(batch.sample_ids.numpy())]
    assert sorted(touched) == sorted(there)
    program.close()


def findings(rates: dict[str, float]) -> Findings:
    samples = {name: [Sample(0.9 * rate), Sample(rate), Sample(1.1 * rate)] for name, rate in rates.items()}
    return Findings(
        samples=samples, cpu_s={}, model=ON_CPU, network=NETWORK, precision="fp32", copy_bytes_per_s=1e10,
        peak={"fp32": 1e11}, fits=True, stayed=0.0, image_bytes=(1e5, 3e5, 6e5), found=[],
    )  # fmt: skip


RATES = {"read, disk": 1e6, "read, cached": 1e4, "decode": 1428.0, "resize": 5000.0, "libjpeg-turbo": 1500.0,
         "compute": 500.0, "loader": 1000.0, "train": 390.0}  # fmt: skip


def test_the_chart_fits_80_columns_and_marks_the_bottleneck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = report.chart(findings(RATES))
    assert max(map(len, lines)) <= 80
    (marked,) = [line for line in lines if "bottleneck" in line]
    assert marked.split()[0] == "compute"
    bars = {line[2:15].strip(): line.count("█") for line in lines}
    assert bars["libjpeg-turbo"] == pytest.approx(3 * bars["compute"], abs=2), "1500 images/s and 500"
    assert "▶" in lines[0], "a bar of 2,000 times is cut off"


def test_the_text_has_the_verdict_and_the_arithmetic() -> None:
    found = findings(RATES)
    lines = report.verdict(found)
    assert lines[0] == "bottleneck: compute, 500 images/s alone"
    assert "train: 408 images/s predicted (by cores), 390 measured, 96%" in lines
    shared = "on a CPU all stages share the cores: decoding slows training also where it waits for no data"
    assert shared in lines
    on_gpu = report.verdict(Findings(**{**vars(found), "model": ON_CPU._replace(on_gpu=True)}))
    assert shared not in on_gpu


def test_of_two_readings_the_one_that_counts_is_marked() -> None:
    slow = ON_CPU._replace(costs=COSTS | {"read": Cost(1.0, 1.0)})
    found = findings(RATES)
    cached = Findings(**{**vars(found), "model": slow})
    assert [report.kind_of(name, cached) for name in ("read, disk", "read, cached")] == ["stage", "bottleneck"]
    disk = Findings(**{**vars(found), "model": slow, "fits": False})
    assert [report.kind_of(name, disk) for name in ("read, disk", "read, cached")] == ["bottleneck", "stage"]


def exchange(rank: int, port: int, folder: str) -> None:
    """One of two processes: sums gradients of 7 M parameters with the other, and keeps the rate and what was summed."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    world, sum_tensor = distributed.start("cpu"), distributed.sum_tensor
    summed: list[int] = []

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        summed.append(len(tensor) if tensor.dim() else 0)
        return sum_tensor(tensor)

    distributed.sum_tensor = watched
    on = Setup(Recipe(), cast(ShardSet, None), world, 8, {})
    sample = stages.build_communication(on, 7_000_000).run(0.2)
    distributed.finish()
    (Path(folder) / str(rank)).write_text(json.dumps([sample.images_per_s, summed]))


def test_communication_sums_all_gradients_in_buckets(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    mp.spawn(exchange, (port, str(tmp_path)), nprocs=2)
    for rank in "01":
        images_per_s, summed = json.loads((tmp_path / rank).read_text())
        buckets = [size for size in summed if size]
        assert buckets[:2] == [25 * 2**20 // 4, 7_000_000 - 25 * 2**20 // 4]
        steps = len(buckets) // 2
        assert buckets == buckets[:2] * steps
        assert 0 < images_per_s < 8 * steps / 0.1, "a step is 8 images of a rank"
