"""What `explain` found, for people: lines of text with a bar chart, whose bars are cut off at eight times the
bottleneck's."""

from collections.abc import Iterator, Sequence

from penstock.benchmarks.explain.model import LOADING, STAGES, Change, Model, precision_of
from penstock.benchmarks.explain.reading import CACHED, DISK
from penstock.benchmarks.explain.stages import LIBJPEG, Timings
from penstock.benchmarks.measure import Ratio
from penstock.benchmarks.options import BenchSetup
from penstock.benchmarks.text import columns, shown_rate, wrapped
from penstock.training import environment

LONGEST = 8.0  # bars, in units of the bottleneck's


def text(
    timings: Timings,
    model: Model,
    changes: Sequence[tuple[Change, float]],
    setup: BenchSetup,
    flops: tuple[float, float],
) -> list[str]:  # fmt: skip
    """All but what `--apply` finds. flops: of an image in training, and of the device a second."""
    recipe, world = setup.recipe, setup.world
    head = (
        f"{setup.batch_size} × {recipe.data.image_size} px, {setup.threads} threads, {recipe.model.name} in "
        f"{precision_of(setup)}, {world.world_size} rank(s), {environment.device_name(world.device)}"
    )
    lines = [*wrapped(head), "each alone, and joined; images/s, median:", *chart(timings, model), ""]
    for paragraph in (*verdict(timings, model), mfu(*flops, timings.rate("compute")), *notes(timings)):
        lines += wrapped(paragraph)
    lines += ["", "most worth changing:"]
    for number, (change, gain) in enumerate(changes, 1):
        another = " (changes the result)" if change.changes_result else ""
        lines += [f"  {number}. {change.option}", *wrapped(f"     expected {gain:.2f} times: {change.why}{another}")]
    return lines if changes else [*lines, "  nothing that would gain 3 % by the model"]


def chart(timings: Timings, model: Model) -> list[str]:
    """A line a program, its bar as long as its rate; no longer than the terminal is wide, 80 columns without one."""
    slowest = 1 / model.costs[model.bottleneck].clock_s
    bottleneck = timings.reading if model.bottleneck == "read" else model.bottleneck
    room = max(8, columns() - 47)
    lines = []
    for name in timings.samples:
        rate = timings.rate(name)
        share = rate / slowest
        bar = "█" * max(1, round(min(share, LONGEST) / LONGEST * room)) + ("▶" if share > LONGEST else "")
        mark = " bottleneck" if name == bottleneck else ""
        lines.append(f"  {name:<13} {shown_rate(rate):>9} {times(share):>7}  {bar}{mark}")
    return lines


def times(share: float) -> str:
    return f"{share:,.0f}×" if share >= 100 else f"{share:.1f}×"


def verdict(timings: Timings, model: Model) -> Iterator[str]:
    """The bottleneck with the others' headroom, and the model beside what was seen."""
    headroom = ", ".join(f"{stage} {times(ratio)}" for stage, ratio in model.headroom().items())
    ceiling = shown_rate(1 / model.costs[model.bottleneck].clock_s)
    yield f"bottleneck: {model.bottleneck}, {ceiling} images/s alone; the others could do {headroom} as many"
    for name, stages in (("loader", LOADING), ("train", STAGES)):
        predicted, bounds, seen = model.rate(stages), model.bounds(stages), timings.rate(name)
        yield (
            f"{name}: {shown_rate(predicted)} images/s predicted (by {max(bounds, key=lambda one: bounds[one])}), "
            f"{shown_rate(seen)} measured, {seen / predicted:.0%}"
        )
    if not model.on_gpu:
        yield "on a CPU all stages share the cores: decoding slows training also where it waits for no data"


def mfu(flops: float, peak: float, rate: float) -> str:
    """What the device's arithmetic allows, with the arithmetic. flops: of an image; peak: a second; rate: images/s."""
    most = f"{flops / 1e9:.3g} GFLOP an image → at most {shown_rate(peak / flops)} images/s"
    share = f"compute has {rate * flops / peak:.0%} of it (MFU)"
    return f"arithmetic: {peak / 1e12:.3g} TFLOP/s by a matrix product, {most}; {share}"


def notes(timings: Timings) -> Iterator[str]:
    """What else the rates tell, and what there is none of."""
    names = timings.samples.keys()
    if LIBJPEG in names:
        whole = timings.rate(LIBJPEG)
        share = timings.rate("decode") / whole
        yield f"{LIBJPEG} decodes {shown_rate(whole)} whole images/s; decode (regions) has {share:.0%} of it"
    if timings.fits and DISK in names and timings.rate(DISK) < timings.rate("train"):
        yield f"the first epoch, from the disk: at most {shown_rate(timings.rate(DISK))} images/s"
    if "decode" not in names:
        yield "images are decoded once: after the first epoch nothing is read; the stage resize is the whole loader"
    elif DISK not in names:
        yield "reading is of the local copies of a URL's shards, in the page cache or not"
    if "decode" in names and CACHED not in names:
        yield "the training split does not fit in memory: every epoch reads it from the disk"
    if "h2d" not in names:
        yield "host to device: none (the network runs on the CPU)"
    if "communication" not in names:
        yield "communication: none (1 rank)"


def applied(change: Change, expected: float, seen: Ratio) -> str:
    """What `--apply` saw."""
    found = f"{seen.median:.2f} seen [{seen.min:.2f}–{seen.max:.2f}]"
    return f"applied {change.option}: {expected:.2f} times expected, {found}"
