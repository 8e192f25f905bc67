"""The measuring: programs in turn, the model of what they cost, the network's counts and the machine's limits."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from time import monotonic

import torch

from benchmarks import programs
from benchmarks.explain import advice, limits, network, page_cache, stages
from benchmarks.explain.advice import Change, Facts
from benchmarks.explain.limits import Shrunk
from benchmarks.explain.model import Cost, Model
from benchmarks.explain.network import Network
from benchmarks.explain.reading import CACHED, DISK, Reading
from benchmarks.explain.stages import Costed, Held
from benchmarks.measure import Program, Ratio, Sample, in_turn, ratio
from benchmarks.options import Opened
from benchmarks.ranks import Together, shared_clock
from model.networks import list_networks
from pipeline.build import threads_per_rank
from training import distributed, environment
from training.learner import autocast_dtype

LIBJPEG = "libjpeg-turbo"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STAYED = 0.05  # of the shards' pages; more makes reading from the disk look faster than it is


@dataclass(frozen=True)
class Findings:
    """samples: of every program. copy_bytes_per_s, peak: the machine's; peak in FLOP/s by precision. fits: whether the
    training split fits in memory. stayed: the share of the shards' pages that could not be dropped; None where it was
    not tried. image_bytes: of an image encoded, of its decoded region, of what the network gets."""

    samples: dict[str, list[Sample]]
    cpu_s: dict[str, float]
    model: Model
    network: Network
    precision: str
    copy_bytes_per_s: float
    peak: dict[str, float]
    fits: bool
    stayed: float | None
    image_bytes: tuple[float, float, float]
    found: list[tuple[Change, float]]

    def rate(self, name: str) -> float:
        return statistics.median(one.images_per_s for one in self.samples[name])


def measure(on: Opened, seconds: float, repeats: int) -> Findings:
    """Everything but `--apply`."""
    recipe, world = on.recipe, on.world
    split = on.dataset.split(recipe.data.train_split)
    size_bytes = sum(info.bytes for info in split.shards)
    fits = bool(distributed.from_rank_0(float(size_bytes < page_cache.memory_bytes()), world))
    net = network.count(recipe.model, len(on.dataset.classes), recipe.data.image_size)
    held = Held(on)
    with ExitStack() as stack:
        built = [stack.enter_context(closing(one)) for one in _programs(on, held, fits, net.num_params)]
        costed = [Costed(Together(one, world) if world.world_size > 1 else one) for one in built]
        samples = _timed(costed, on, seconds, repeats)
    cpu_s = {one.name: statistics.median(one.cpu_s[-repeats:]) for one in costed}
    stayed = [max(one.stayed) for one in built if isinstance(one, Reading) and one.stayed]
    model = _model(samples, cpu_s, fits, on)
    dtype = autocast_dtype(recipe, world.device)
    precision = next(name for name, one in DTYPES.items() if one == (dtype or torch.float32))
    best = environment.best_precision(world.device)

    def from_rank_0(value: float) -> float:  # so that all ranks come to the same changes
        return distributed.from_rank_0(value, world)

    peak = {
        name: from_rank_0(limits.matmul_flops_per_s(DTYPES[name], world.device))
        for name in dict.fromkeys(("fp32", precision, best))
    }
    bandwidth = from_rank_0(limits.copy_bytes_per_s(world.device))
    facts = Facts(
        recipe=recipe, model=model, network=net, batch_size=on.batch_size, world_size=world.world_size,
        threads=on.threads, torch_threads=torch.get_num_threads(), cores=threads_per_rank(0, world.local_world_size),
        peak=peak, precision=precision, best_precision=best, bandwidth=bandwidth, fits=fits, num_train=len(split),
        train_s=1 / statistics.median(one.images_per_s for one in samples["train"]),
    )  # fmt: skip
    facts = _with_details(facts, on, held)
    found = advice.best(model, [*advice.changes(facts), *_tried(facts, on, held, seconds, repeats)])
    out_bytes = programs.image_bytes(recipe, world)
    return Findings(
        samples, cpu_s, model, net, precision, bandwidth, peak, fits, stayed[0] if stayed else None,
        (held.encoded_bytes, held.region_bytes, out_bytes), found,
    )  # fmt: skip


def _programs(on: Opened, held: Held, fits: bool, num_params: int) -> list[Program]:
    """All that is timed, in the order in which data flows, then what is joined."""
    recipe, dataset, world = on.recipe, on.dataset, on.world
    split = page_cache.part(dataset.split(recipe.data.train_split))
    found: list[Program] = []
    if not split.url:
        page_cache.restore(split, world)
        found.append(Reading(on, split, cold=True))
    if fits or split.url:
        found.append(Reading(on, split, cold=False))
    found += [stages.build_decode(on, held), stages.build_resize(on, held)]
    libjpeg = stages.build_libjpeg(on, held)
    lacking = distributed.sum_tensor(torch.tensor(float(libjpeg is None)))
    if libjpeg and not lacking.item():
        found.append(libjpeg)
    if world.device.type == "cuda":
        found.append(_named("h2d", programs.build_copies(recipe, dataset, world, on.batch_size)[0]))
    found.append(_named("compute", _compute(on)))
    if world.world_size > 1:
        found.append(stages.build_communication(on, num_params))
    for kind in ("loader", "train"):
        found.append(_named(kind, programs.build(kind, "dali", recipe, dataset, world, on.batch_size)))
    return found


def _compute(on: Opened) -> programs.BatchProgram:
    """Training steps of each rank by itself, without the exchange of gradients."""
    single = replace(on.world, rank=0, world_size=1, local_world_size=1)
    return programs.build("compute", "synthetic", on.recipe, on.dataset, single, on.batch_size)


def _named(name: str, program: programs.BatchProgram) -> programs.BatchProgram:
    program.name = name
    return program


def _timed(built: Sequence[Program], on: Opened, seconds: float, repeats: int) -> dict[str, list[Sample]]:
    clock: Callable[[], float] = shared_clock(on.world) if on.world.world_size > 1 else monotonic
    return in_turn(built, seconds, repeats, clock)


def _model(samples: dict[str, list[Sample]], cpu_s: dict[str, float], fits: bool, on: Opened) -> Model:
    """Reading is from the page cache where all shards fit in memory, since every epoch but the first is. Its CPU time
    is that of the cached one, where dropping pages takes no part."""
    reading = CACHED if CACHED in samples and (fits or DISK not in samples) else DISK
    names = {"read": reading} | {name: name for name in ("decode", "resize", "h2d", "compute", "communication")}
    costs = {
        stage: Cost(1 / statistics.median(one.images_per_s for one in samples[name]), cpu_s[name])
        for stage, name in names.items()
        if name in samples
    }
    nodes = on.world.world_size // on.world.local_world_size
    cores = (environment.cores_allowed() or 1) * nodes
    return Model(costs, cores, on.world.device.type == "cuda")


def _with_details(facts: Facts, on: Opened, held: Held) -> Facts:
    """What only the rules for this bottleneck need, and takes time to find out."""
    split = page_cache.part(on.dataset.split(on.recipe.data.train_split))
    bottleneck = facts.model.bottleneck
    if bottleneck in ("read", "decode") or not facts.model.on_gpu:
        short_side = advice.short_side(on.recipe)
        found = limits.shrunk(held.views[0], short_side)
        shrunk = Shrunk(*(distributed.from_rank_0(share, on.world) for share in found))
        facts = replace(facts, short_side=short_side, shrunk=shrunk)
    if bottleneck == "read" and not facts.fits and not split.url:
        facts = replace(facts, sequential_s=distributed.from_rank_0(page_cache.sequential_s(split, on.world), on.world))
    if bottleneck == "compute":
        smaller = network.smaller(facts.network, on.recipe.model, len(on.dataset.classes), list_networks)
        facts = replace(facts, smaller=smaller)
    return facts


def apply(on: Opened, findings: Findings, seconds: float, repeats: int) -> tuple[list[Change], float, Ratio] | None:
    """Train with those of the changes that a recipe can make, in turn with training as it is. Returns these changes,
    the gain expected of them together, and the gain seen; None where there is none."""
    changes = [change for change, _ in findings.found if change.settings]
    if not changes:
        return None
    recipe = on.recipe
    for change in changes:
        recipe = advice.applied(recipe, change.settings)
    batch_size = on.batch_size * recipe.train.global_batch_size // on.recipe.train.global_batch_size
    pair = [
        _named("with", programs.build("train", "dali", recipe, on.dataset, on.world, batch_size)),
        _named("without", programs.build("train", "dali", on.recipe, on.dataset, on.world, on.batch_size)),
    ]
    rates = _pair_rates(pair, on, seconds, repeats)
    return changes, findings.model.gain(*(change.factors for change in changes)), ratio(*rates)


def _tried(facts: Facts, on: Opened, held: Held, seconds: float, repeats: int) -> list[Change]:
    """The trials of the bottleneck's stage, each in turn with the stage as it is."""
    found, bottleneck = [], facts.model.bottleneck
    build = {"decode": stages.build_decode, "resize": stages.build_resize, "compute": lambda on, _: _compute(on)}
    for change in advice.trials(facts):
        changed = on._replace(recipe=advice.applied(on.recipe, change.settings))
        its = Held(changed) if bottleneck == "resize" else held  # its arrays are of the recipe's augmentation
        pair = [_named("with", build[bottleneck](changed, its)), _named("without", build[bottleneck](on, held))]
        share = 1 / ratio(*_pair_rates(pair, on, seconds, repeats)).median
        found.append(replace(change, factors=dict(change.factors) | {bottleneck: (share, share)}))
    return found


def _pair_rates(pair: Sequence[Program], on: Opened, seconds: float, repeats: int) -> list[list[float]]:
    """Images/s of two programs in turn; closes them."""
    with ExitStack() as stack:
        for program in pair:
            stack.enter_context(closing(program))
        run = [Together(one, on.world) for one in pair] if on.world.world_size > 1 else pair
        samples = _timed(run, on, seconds, repeats)
    return [[one.images_per_s for one in samples[program.name]] for program in pair]
