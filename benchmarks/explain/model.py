"""Predict from each stage's own speed how fast all run together, which stage limits, and what changes would gain.

A stage that runs alone, with every core it may use, takes `clock_s` seconds per image by the clock (its ceiling is
1 / clock_s images/s) and `cpu_s` CPU seconds per image over all threads.

On a CPU all stages share the cores. Three bounds limit the combined rate, and the slowest one decides:

    decode threads   decode.clock_s + resize.clock_s     both run in these threads, one after the other
    main thread      read.clock_s + compute.clock_s      it plans and hands over a batch, then trains on it
    cores            (sum of all stages' cpu_s) / cores  CPU seconds of all stages add up

With several ranks there is a fourth bound: the exchange of gradients, which runs beside the backward pass. On a GPU the
stages have engines of their own and overlap, so the slowest stage is the ceiling. In reality decoding and training on a
GPU share its multiprocessors, so there the model is an upper bound.

The bottleneck is the stage with the lowest ceiling. A stage's headroom is its ceiling divided by the bottleneck's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from penstock.benchmarks.explain.stages import Timings, meta_network
from penstock.benchmarks.options import BenchSetup
from penstock.pipeline.build import threads_per_rank
from penstock.pipeline.memory import available_bytes
from penstock.shards.program import SHARD_TOOLS
from penstock.training import distributed, environment
from penstock.training.learner import autocast_dtype

LOADING = ("read", "decode", "resize")
STAGES = (*LOADING, "h2d", "compute", "communication")
WORTH = 1.03  # smaller gains are noise
SMALLER_SIZE, SIZE_STEP = 5 / 7, 32  # 224 → 160 px, the first image size of FFCV's recipes
OTHER_TRAINING = ("data.image_size",)  # settings that change the trained network

Factors = Mapping[str, tuple[float, float]]  # stage → factors for its clock_s and cpu_s
Value = str | float | bool  # of a recipe's key


class Cost(NamedTuple):
    """Cost of one image in a stage that runs alone: clock seconds, and CPU seconds over all threads and ranks."""

    clock_s: float
    cpu_s: float


FREE = Cost(0.0, 0.0)


class Model(NamedTuple):
    """The stages' costs and the resources that they share.

    costs: of the stages that exist here, by name. cores: the number that all ranks together may use. train_s: measured
    seconds per image in training, 0 if not measured.
    """

    costs: Mapping[str, Cost]
    cores: float
    on_gpu: bool
    train_s: float = 0.0

    def bounds(self, stages: tuple[str, ...] = STAGES) -> dict[str, float]:
        """Return the bounds on these stages when they run together: name → seconds per image."""
        costs = {stage: self.costs.get(stage, FREE) if stage in stages else FREE for stage in STAGES}
        if self.on_gpu:
            return {stage: cost.clock_s for stage, cost in costs.items()}
        return {
            "decode threads": costs["decode"].clock_s + costs["resize"].clock_s,
            "main thread": costs["read"].clock_s + costs["compute"].clock_s,
            "cores": sum(cost.cpu_s for cost in costs.values()) / self.cores,
            "communication": costs["communication"].clock_s,
        }

    def rate(self, stages: tuple[str, ...] = STAGES) -> float:
        """Return the images/s that these stages reach together."""
        return 1 / max(self.bounds(stages).values())

    @property
    def bottleneck(self) -> str:
        return max(self.costs, key=lambda stage: self.costs[stage].clock_s)

    def headroom(self) -> dict[str, float]:
        """Return every other stage's ceiling divided by the bottleneck's, the smallest first."""
        slowest = self.costs[self.bottleneck].clock_s
        ratios = {stage: slowest / cost.clock_s for stage, cost in self.costs.items() if stage != self.bottleneck}
        return dict(sorted(ratios.items(), key=lambda item: item[1]))

    def gain(self, factors: Factors) -> float:
        """Return how many times as fast training should be if the stages' costs change by these factors.

        On a CPU, loading takes CPU time from training, so training is slower than computing alone. This holds even if
        the main thread is the bound. The loss shrinks in proportion to the CPU time that loading saves.
        """
        costs = dict(self.costs)
        for stage, (clock, cpu) in factors.items():
            if stage in costs:
                costs[stage] = Cost(costs[stage].clock_s * clock, costs[stage].cpu_s * cpu)
        gain = self._replace(costs=costs).rate() / self.rate()
        if gain > WORTH or self.on_gpu or not self.train_s:
            return gain
        before, after = (sum(its[stage].cpu_s for stage in LOADING) for its in (self.costs, costs))
        lost_s = max(0.0, self.train_s - self.costs["compute"].clock_s)
        return self.train_s / (self.train_s - lost_s * (1 - after / before))


def model_of(timings: Timings, setup: BenchSetup) -> Model:
    """Build the model from the timings."""
    world, names = setup.world, {stage: timings.reading if stage == "read" else stage for stage in STAGES}
    there = {stage: name for stage, name in names.items() if name in timings.samples}
    costs = {stage: Cost(1 / timings.rate(name), timings.cpu_s[name]) for stage, name in there.items()}
    cores = distributed.from_rank_0(environment.cores_allowed() or 1, world) * world.world_size / world.local_world_size
    return Model(costs, cores, world.device.type == "cuda", 1 / timings.rate("train"))


@dataclass(frozen=True)
class Change:
    """A change worth considering.

    option: the option or command to type. why: its effect, in a few words. factors: as in `Model.gain`; None if the
    effect on the bottleneck has to be measured. settings: the recipe's settings, section.key → value; empty if the
    images have to be packed again. changes_result: training gives a different network.
    """

    option: str
    why: str
    factors: Factors | None
    settings: Mapping[str, Value] = field(default_factory=dict)
    changes_result: bool = False


def candidates(model: Model, setup: BenchSetup, fits: bool) -> list[Change]:
    """Return the changes that apply here, whatever they gain. `fits`: the training split fits in memory."""
    recipe, device, ranks = setup.recipe, setup.world.device, setup.world.world_size
    data, net, read = recipe.data, recipe.model, model.costs.get("read", Cost(1.0, 1.0))
    threads, cores = setup.threads, threads_per_rank(0, setup.world.local_world_size)
    stored = data.cache == "pixels"
    size = round(data.image_size * SMALLER_SIZE / SIZE_STEP) * SIZE_STEP
    smaller = SIZE_STEP <= size < data.image_size and not hasattr(meta_network(setup), "image_size")
    pixels = (size / data.image_size) ** 2
    computes, decodes = (model.on_gpu and model.bottleneck == stage for stage in ("compute", "decode"))
    half, on_cores = environment.best_precision(device), data.gpu_decode == "off"
    # CUDA graphs do not work with accumulation, and "auto" already uses them on one GPU
    graphs = recipe.train.accumulation == 1 and net.compile is not False
    graphs = graphs and (net.compile_mode == "default" or (net.compile_mode == "auto" and ranks > 1))
    by_threads = dict.fromkeys(("decode", "resize"), (threads / cores, 1.0))
    no_waits, fewer = {"read": (read.cpu_s / read.clock_s, 1.0)}, {"compute": (pixels, pixels), "h2d": (pixels, 1.0)}
    rows: list[tuple[bool, str, Value, Factors | None, str]] = [
        # condition, setting, value, factors of the stages (None: to be measured), why
        (threads < cores, "data.threads", cores, by_threads, "decodes on all cores"),
        (fits and data.cache == "none", "data.cache", "encoded", no_waits, "reads shards once, when the run starts"),
        (
            not stored and pixels_fit(setup),
            "data.cache",
            "pixels",
            {"decode": (0.0, 0.0)},
            "decodes each image only once, in the first epoch",
        ),
        (smaller, "data.image_size", size, fewer, "fewer pixels; use [phases] to do so in the first epochs only"),
        (computes and precision_of(setup) == "fp32", "train.precision", half, None, "halves the bytes moved"),
        (computes and net.compile is False, "model.compile", True, None, "makes fewer passes over memory"),
        (computes and graphs, "model.compile_mode", "reduce-overhead", None, "launches a step as CUDA graphs"),
        (decodes and on_cores, "data.gpu_decode", "whole", None, "decodes on the GPU"),
        (decodes and not on_cores, "data.gpu_decode", "off", None, "decodes on the CPU's cores"),
    ]
    if decodes and not on_cores:
        loads = [load for load in (0.4, 0.8, 1.0) if load != data.hw_decoder_load]
        rows += [(True, "data.hw_decoder_load", load, None, "changes the JPEG engines' share") for load in loads]
    found = [
        Change(f"--set {key}={'true' if value is True else value}", why, factors, {key: value}, key in OTHER_TRAINING)
        for when, key, value, factors, why in rows
        if when
    ]
    if not stored and (not model.on_gpu or model.bottleneck in ("read", "decode")):
        found.append(smaller_copies(setup, fits))
    return found


def pixels_fit(setup: BenchSetup) -> bool:
    """Return whether the decoded training images fit in half of the free memory.

    Validation images and the rest of the program need memory too.
    """
    return pixel_bytes(setup) < available_bytes() // 2


def pixel_bytes(setup: BenchSetup) -> int:
    """Return the size of the training images, decoded, in bytes."""
    rows = setup.dataset.split(setup.recipe.data.train_split).samples
    return 3 * int((rows["height"].astype(np.int64) * rows["width"]).sum())


def smaller_copies(setup: BenchSetup, fits: bool) -> Change:
    """Return the change that packs the images again with a smaller shorter side.

    The side is the smaller of two sizes: the size that validation resizes to, and twice the largest training size (more
    than random crops need). It is never below the training size. The time to decode and read an image grows with its
    pixels.
    """
    data, samples = setup.recipe.data, setup.dataset.split(setup.recipe.data.train_split).samples
    trained = max((data.image_size, *setup.recipe.phases.image_size))
    short_side = max(trained, min(data.val_resize_size, 2 * trained))
    height, width = samples["height"].astype(float), samples["width"].astype(float)
    scale = np.minimum(1.0, short_side / np.minimum(height, width))
    share = float((height * width * scale**2).sum() / (height * width).sum())
    why = f"re-encodes the images with {share:.2f} times the pixels"
    if short_side < data.val_resize_size:
        why += f"; validation then enlarges images to data.val_resize_size = {data.val_resize_size}"
    command = f"{SHARD_TOOLS} pack SOURCE OUT --short-side {short_side}"
    return Change(command, why, {"decode": (share, share), "read": (1.0 if fits else share, 1.0)})


def applied(setup: BenchSetup, change: Change) -> BenchSetup:
    """Return the setup with the change made to the recipe's settings."""
    recipe = setup.recipe
    for key, value in change.settings.items():
        section, name = key.split(".")
        recipe = replace(recipe, **{section: replace(getattr(recipe, section), **{name: value})})
    return setup._replace(recipe=recipe)


def best(
    model: Model, found: Sequence[Change], measured: Callable[[Change], float], number: int = 2
) -> list[tuple[Change, float]]:
    """Return the changes most worth making, each with the gain expected from it alone.

    Changes that keep the training result come first, then the larger gains. Gains below 3% are dropped. `measured`:
    measures how many times as fast the bottleneck's stage is with a change that has no known factors.
    """
    gains = []
    for change in found:
        factors = change.factors
        if factors is None:
            share = 1 / measured(change)
            factors = {model.bottleneck: (share, share)}
        gains.append((replace(change, factors=factors), model.gain(factors)))
    gains = [(change, gain) for change, gain in gains if gain > WORTH]
    return sorted(gains, key=lambda pair: (pair[0].changes_result, -pair[1]))[:number]


def precision_of(setup: BenchSetup) -> str:
    """Return the network's precision: "fp32", "bf16" or "fp16"."""
    dtype = autocast_dtype(setup.recipe, setup.world.device)
    return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
