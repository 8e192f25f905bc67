"""The text that `explain` prints: a bar chart, the bottleneck, the changes most worth trying, and details.

A bar is cut off at eight times the length of the bottleneck's.
"""

from collections.abc import Iterator, Sequence

from penstock.benchmarks.explain.model import LOADING, STAGES, Change, Model, precision_of
from penstock.benchmarks.explain.reading import CACHED, DISK
from penstock.benchmarks.explain.stages import LIBJPEG, Timings
from penstock.benchmarks.measure import Ratio
from penstock.benchmarks.options import BenchSetup
from penstock.benchmarks.text import columns, shown_rate, wrapped
from penstock.training import environment

LONGEST = 8.0  # the longest bar, as a multiple of the bottleneck's
WORK = {  # stage → the work that it does, in words
    "read": "reading the shards",
    "decode": "decoding the images",
    "resize": "resizing and augmenting the images",
    "h2d": "copying batches to the GPU",
    "compute": "training the network on a batch in memory",
    "communication": "exchanging the gradients between ranks",
}


def text(
    timings: Timings,
    model: Model,
    changes: Sequence[tuple[Change, float]],
    setup: BenchSetup,
    flops: tuple[float, float],
) -> list[str]:  # fmt: skip
    """Return all lines except those of `--apply`. flops: FLOPs per image in training, and the device's peak FLOP/s."""
    recipe, world = setup.recipe, setup.world
    head = (
        f"{recipe.model.name} in {precision_of(setup)}, batch size {setup.batch_size} at {recipe.data.image_size} px, "
        f"{setup.threads} threads, {world.world_size} rank{'s' * (world.world_size > 1)}, "
        f"{environment.device_name(world.device)}"
    )
    legend = (
        "Each stage alone, then the whole loader and training. Median images/s, and as a multiple of the bottleneck's:"
    )
    lines = [*wrapped(head), *wrapped(legend), *chart(timings, model), ""]
    lines += [*wrapped(bottleneck(model)), *advice(changes), "", "Details:"]
    for paragraph in (*verdict(timings, model), mfu(*flops, timings.rate("compute")), *notes(timings)):
        lines += wrapped(f"  {paragraph}")
    return lines


def bottleneck(model: Model) -> str:
    """Name the stage that limits training, in one sentence."""
    ceiling = shown_rate(1 / model.costs[model.bottleneck].clock_s)
    return f"The bottleneck is {model.bottleneck}: by itself, {WORK[model.bottleneck]} runs at {ceiling} images/s."


def advice(changes: Sequence[tuple[Change, float]]) -> list[str]:
    """List the changes, each with its expected gain."""
    if not changes:
        return ["Most worth trying: nothing. By the model, no change would gain 3% or more."]
    lines = ["Most worth trying:"]
    for number, (change, gain) in enumerate(changes, 1):
        another = " (changes the training result)" if change.changes_result else ""
        expected = f"expected {gain:.2f} times as fast: {change.why}{another}"
        lines += [f"  {number}. {change.option}", *wrapped(f"     {expected}")]
    return lines


def chart(timings: Timings, model: Model) -> list[str]:
    """Return one line per program, with a bar for its rate. Lines fit the terminal, or 80 columns without one."""
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
    """Show the headroom of the other stages, and the model's predictions beside the measured rates."""
    headroom = ", ".join(f"{stage} {times(ratio)}" for stage, ratio in model.headroom().items())
    yield f"Headroom, in multiples of the bottleneck's images/s: {headroom}."
    for name, stages in (("loader", LOADING), ("train", STAGES)):
        predicted, bounds, seen = model.rate(stages), model.bounds(stages), timings.rate(name)
        expected = f"{shown_rate(predicted)} images/s (limited by: {max(bounds, key=lambda one: bounds[one])})"
        yield f"{name}: the model predicts {expected}. Measured: {shown_rate(seen)} images/s, {seen / predicted:.0%}."
    if not model.on_gpu:
        yield "On a CPU all stages share the cores, so decoding slows training even if training never waits for data."


def mfu(flops: float, peak: float, rate: float) -> str:
    """Show the MFU and how it comes about. flops: per image. peak: FLOP/s. rate: images/s of compute."""
    most = f"{flops / 1e9:.3g} GFLOP per image allow at most {shown_rate(peak / flops)} images/s"
    share = f"compute reaches {rate * flops / peak:.0%} of that (MFU)"
    return f"Arithmetic: {peak / 1e12:.3g} TFLOP/s in a matrix product and {most}; {share}."


def notes(timings: Timings) -> Iterator[str]:
    """Further findings from the rates, and the stages that are missing."""
    names = timings.samples.keys()
    if LIBJPEG in names:
        whole = timings.rate(LIBJPEG)
        share = timings.rate("decode") / whole
        yield f"{LIBJPEG} decodes {shown_rate(whole)} whole images/s; decode (regions) reaches {share:.0%} of that."
    if timings.fits and DISK in names and timings.rate(DISK) < timings.rate("train"):
        yield f"The first epoch reads from the disk, at no more than {shown_rate(timings.rate(DISK))} images/s."
    if "decode" not in names:
        yield (
            "Images are decoded once: after the first epoch nothing is read, and the stage resize is the whole loader."
        )
    elif DISK not in names:
        yield "The dataset is at a URL: read is measured on local copies of the shards, in the page cache or not."
    if "decode" in names and CACHED not in names:
        yield "The training split does not fit in memory, so every epoch reads it from the disk."
    if "h2d" not in names:
        yield "No copies to a GPU: the network runs on the CPU."
    if "communication" not in names:
        yield "No communication: there is only 1 rank."


def applied(change: Change, expected: float, seen: Ratio) -> str:
    """Show the gain that `--apply` measured."""
    found = f"measured {seen.median:.2f} [{seen.min:.2f}–{seen.max:.2f}]"
    return f"applied {change.option}: expected {expected:.2f} times as fast, {found}"
