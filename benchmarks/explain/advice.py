"""What to change: measured facts → settings with their expected gain in training, by `model`.

Each rule says what becomes of the stages' costs:

    python -m shard_tools pack … --short-side   decoding by what libjpeg-turbo gains on re-encoded images, disk by bytes
                                                (on a CPU at any bottleneck, for all stages share its cores)
    data.threads                                decode threads in inverse proportion, up to the cores
    data.cache = "encoded"                      reading waits for nothing more; its CPU time stays
    data.order = "block"                        reading waits as long as a sequential read takes
    model.compile                               on a GPU, computing by the bound that FLOPs and bytes set (the roofline)
    train.global_batch_size                     the optimizer's step and the exchange of gradients are halved an image
    data.image_size, model.name                 computing by pixels, by FLOPs
    OMP_NUM_THREADS                             computing in inverse proportion, up to the cores

What no rule can know (precision, the share of the GPU's JPEG engines, cheaper filters and augmentation) is tried with
the stage that is the bottleneck: `trials`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.explain.limits import Shrunk
from benchmarks.explain.model import LOADING, Factors, Model
from benchmarks.explain.network import Network
from recipes import Recipe

WORTH = 1.03  # gains below are noise
OPTIMIZER_PASSES = 5  # over float32 parameters: gradient, weight and momentum are read, the latter two written
SMALLER_SIZE = 5 / 7  # 224 → 160 px, as FFCV's recipes begin
SIZE_STEP = 32
HALF = ("bf16", "fp16")


@dataclass(frozen=True)
class Change:
    """One setting to change.

    option: to be typed. why: what it does, in a few words. factors: as `Model.changed` takes them. settings: the
    recipe's, section.key → value; empty where that is not enough, because images are packed again or a variable of the
    environment is set. other_training: the trained network is another, or trained otherwise. instead: other options,
    which do so in part of the training only. shared_gain: on a CPU, what the rates that were measured let expect; it
    stands where the model expects nothing.
    """

    option: str
    why: str
    factors: Factors
    settings: Mapping[str, Any] = field(default_factory=dict)
    other_training: bool = False
    instead: str = ""
    shared_gain: float = 1.0


@dataclass(frozen=True)
class Facts:
    """What the rules know. Of a rank: batch_size, threads, torch_threads, cores. peak: FLOP/s by precision, with
    "fp32" at least; precision: the one that training runs in. sequential_s: an image's time in a sequential read, or
    None; fits: all shards fit in memory. smaller: see `network.smaller`. train_s: what an image takes in training, as
    it was measured."""

    recipe: Recipe
    model: Model
    network: Network
    batch_size: int
    world_size: int
    threads: int
    torch_threads: int
    cores: int
    peak: Mapping[str, float]
    precision: str
    best_precision: str
    bandwidth: float
    shrunk: Shrunk | None = None
    short_side: int = 0
    sequential_s: float | None = None
    fits: bool = True
    smaller: Network | None = None
    num_train: int = 0
    train_s: float = 0.0


def short_side(recipe: Recipe) -> int:
    """To which images can be packed: what validation resizes to, or twice the largest size that is trained, which is
    more than random crops of it need, where that is less; in pixels."""
    trained = max((recipe.data.image_size, *recipe.phases.image_size))
    return max(trained, min(recipe.data.val_resize_size, 2 * trained))


def changes(facts: Facts) -> list[Change]:
    """All that the rules have for these facts, whatever it gains."""
    found = [*_data(facts), *_computing(facts), *_size_and_network(facts)]
    return [change for change in found if change.factors]


def best(model: Model, found: Sequence[Change], number: int = 2) -> list[tuple[Change, float]]:
    """The changes most worth making, with the gain expected of each alone: what leaves the training as it is first,
    then by gain. Those that gain less than 3 % are left out."""
    gains = [(change, model.gain(change.factors)) for change in found]
    gains = [(change, gain if gain > WORTH else change.shared_gain) for change, gain in gains]
    gains = [(change, gain) for change, gain in gains if gain > WORTH]
    return sorted(gains, key=lambda pair: (pair[0].other_training, -pair[1]))[:number]


def _data(facts: Facts) -> list[Change]:
    data, costs, found = facts.recipe.data, facts.model.costs, []
    if facts.shrunk:
        decode, smaller = facts.shrunk
        command = f"python -m shard_tools pack SOURCE OUT --short-side {facts.short_side}"
        disk = 1.0 if facts.fits else smaller
        why = f"whole decoding takes {decode:.2f} times as long, the shards {smaller:.2f} times the bytes; re-encoded"
        if facts.short_side < data.val_resize_size:
            why += f"; validation then enlarges images to data.val_resize_size = {data.val_resize_size}"
        factors: Factors = {"decode": (decode, decode), "read": (disk, 1.0)}
        found.append(Change(command, why, factors, shared_gain=_shared_gain(facts, factors)))
    if facts.threads < facts.cores:
        share = facts.threads / facts.cores
        factors = {"decode": (share, 1.0), "resize": (share, 1.0)}
        found.append(_set("data.threads", facts.cores, "decoding takes all cores", factors))
    read = costs["read"]
    waits = read.clock_s - read.cpu_s
    if facts.fits and data.cache == "none" and waits > 0:
        why = "the shards are read once, when the run starts"
        found.append(_set("data.cache", "encoded", why, {"read": (read.cpu_s / read.clock_s, 1.0)}))
    if not facts.fits and data.order == "global" and facts.sequential_s:
        left = max(read.cpu_s, facts.sequential_s) / read.clock_s
        why = "reads of megabytes instead of single images; shuffles within windows"
        found.append(_set("data.order", "block", why, {"read": (min(1.0, left), 1.0)}))
    return found


def _shared_gain(facts: Facts, factors: Factors) -> float:
    """On a CPU training is slower than computing alone by what loading takes of the cores, also where the model has the
    main thread for the limit. So much of this ends as loading needs less CPU time."""
    model = facts.model
    if model.on_gpu or not facts.train_s:
        return 1.0
    before, after = (sum(one.costs[stage].cpu_s for stage in LOADING) for one in (model, model.changed(factors)))
    lost_s = max(0.0, facts.train_s - model.costs["compute"].clock_s)
    return facts.train_s / (facts.train_s - lost_s * (1 - after / before))


def _computing(facts: Facts) -> list[Change]:
    recipe, compute, found = facts.recipe, facts.model.costs["compute"], []
    if facts.model.on_gpu and recipe.model.compile is False and facts.network.elements:
        share = _bound_s(facts, facts.precision, "fused") / _bound_s(facts, facts.precision, "eager")
        found.append(_set("model.compile", True, "fewer passes over memory", {"compute": (share, 1.0)}))
    if facts.torch_threads < facts.cores:
        share = facts.torch_threads / facts.cores
        option = f"OMP_NUM_THREADS={facts.cores} before the command"
        if not facts.model.on_gpu:
            found.append(Change(option, "the network takes all cores", {"compute": (share, 1.0)}))
    # a rank's step, an image of all ranks
    step_s = OPTIMIZER_PASSES * 4 * facts.network.num_params / facts.bandwidth
    share = min(0.9, step_s / (facts.batch_size * facts.world_size) / compute.clock_s)
    factors = {"compute": (1 - share / 2, 1 - share / 2), "communication": (0.5, 0.5)}
    doubled = 2 * recipe.train.global_batch_size
    if doubled <= facts.num_train:
        why = "half as many optimizer steps and exchanges an image; the learning rate changes with it"
        found.append(_set("train.global_batch_size", doubled, why, factors, other_training=True))
    return found


def _size_and_network(facts: Facts) -> list[Change]:
    data, found = facts.recipe.data, []
    size = round(data.image_size * SMALLER_SIZE / SIZE_STEP) * SIZE_STEP
    if SIZE_STEP <= size < data.image_size and facts.network.own_size is None:
        share = (size / data.image_size) ** 2
        middle, phases = facts.recipe.train.epochs // 2, ""
        if middle:
            phases = f"--set 'phases.start_epochs=[0,{middle}]' --set 'phases.image_size=[{size},{data.image_size}]'"
        factors = {"compute": (share, share), "h2d": (share, 1.0)}
        change = _set("data.image_size", size, "fewer pixels", factors, other_training=True)
        found.append(replace(change, instead=phases))
    if facts.smaller:
        share = facts.smaller.flops / facts.network.flops
        why = f"{facts.smaller.flops / 1e9:.3g} GFLOP an image instead of {facts.network.flops / 1e9:.3g}"
        found.append(_set("model.name", facts.smaller.name, why, {"compute": (share, share)}, other_training=True))
    return found


def _bound_s(facts: Facts, precision: str, level: str) -> float:
    """The least time that the network's arithmetic and memory traffic allow, seconds an image."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    moved = facts.network.image_bytes(level, dtype) if facts.network.elements else 0.0
    return max(facts.network.flops / facts.peak[precision], moved / facts.bandwidth)


def _set(key: str, value: Any, why: str, factors: Factors, other_training: bool = False) -> Change:
    shown = str(value).lower() if isinstance(value, bool) else value
    return Change(f"--set {key}={shown}", why, factors, {key: value}, other_training)


def trials(facts: Facts) -> list[Change]:
    """What is worth a try at this bottleneck; the factor of its stage is still to be measured."""
    data, augment, bottleneck = facts.recipe.data, facts.recipe.augment, facts.model.bottleneck
    found: list[Change] = []
    if bottleneck == "compute" and facts.precision == "fp32" and facts.best_precision in HALF:
        why = "half the bytes, other arithmetic units"
        found.append(_set("train.precision", facts.best_precision, why, {"h2d": (0.5, 1.0)}))
    if bottleneck == "compute" and facts.precision in HALF and not facts.model.on_gpu:
        found.append(_set("train.precision", "fp32", "half precision may lack fast kernels on a CPU", {}))
    recipe = facts.recipe  # graphs do not go with accumulation, and are not chosen for several ranks
    plain = recipe.model.compile_mode == "default" or (recipe.model.compile_mode == "auto" and facts.world_size > 1)
    plain = plain and recipe.model.compile is not False and recipe.train.accumulation == 1
    if bottleneck == "compute" and facts.model.on_gpu and plain:
        found.append(_set("model.compile_mode", "reduce-overhead", "a step is launched as CUDA graphs", {}))
    if bottleneck == "decode" and facts.model.on_gpu:
        loads = [load for load in (0.4, 0.8, 1.0) if load != data.hw_decoder_load]
        if data.gpu_decode == "off":
            found.append(_set("data.gpu_decode", "whole", "the GPU decodes", {}))
        else:
            found += [_set("data.hw_decoder_load", load, "another share for the JPEG engines", {}) for load in loads]
            found.append(_set("data.gpu_decode", "off", "the CPU's cores decode", {}))
    if bottleneck == "resize":
        if augment.rotation and augment.rotation_filter == "linear":
            found.append(_set("augment.rotation_filter", "nearest", "a cheaper filter", {}, other_training=True))
        if augment.auto != "none":
            found.append(_set("augment.auto", "none", "less augmentation", {}, other_training=True))
        if data.antialias:
            found.append(_set("data.antialias", False, "fewer pixels are read", {}, other_training=True))
    return found


def applied(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with these settings, section.key → value."""
    for key, value in settings.items():
        section, name = key.split(".")
        recipe = replace(recipe, **{section: replace(getattr(recipe, section), **{name: value})})
    return recipe
