"""What `explain` found, for people: lines of text with a bar chart, and a picture.

Bars in the terminal are linear and cut off at eight times the bottleneck's; in the picture the axis is logarithmic.
"""

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.explain.advice import Change
from benchmarks.explain.measuring import DTYPES, LIBJPEG, STAYED, Findings
from benchmarks.explain.model import LOADING
from benchmarks.explain.reading import CACHED, DISK
from benchmarks.measure import Ratio
from benchmarks.options import Setup
from benchmarks.text import columns, shown_rate, wrapped
from training import environment

LONGEST = 8.0  # bars, in units of the bottleneck's
COLOURS = {"bottleneck": "#d55e00", "stage": "#0072b2", "joined": "#009e73", "limit": "#7f7f7f"}  # Okabe and Ito
HATCHES = {"bottleneck": "//", "stage": "", "joined": "..", "limit": "xx"}


def stage_of(name: str) -> str:
    """The stage that a program measures: "read" of "read, disk"."""
    return name.partition(",")[0]


def kind_of(name: str, findings: Findings) -> str:
    """How a program is drawn."""
    if name in ("loader", "train"):
        return "joined"
    if name == LIBJPEG:
        return "limit"
    counts = not findings.samples.keys() >= {DISK, CACHED} or name != (DISK if findings.fits else CACHED)
    return "bottleneck" if stage_of(name) == findings.model.bottleneck and counts else "stage"


def text(findings: Findings, on: Setup) -> list[str]:
    """All but what `--apply` finds."""
    head = (
        f"{on.batch_size} × {on.recipe.data.image_size} px, {on.threads} threads, {on.recipe.model.name} in "
        f"{findings.precision}, {on.world.world_size} rank(s), {environment.device_name(on.world.device)}"
    )
    lines = [*wrapped(head), "each alone, and joined; images/s, median:", *chart(findings)]
    for title, paragraphs in (
        ("", absent(findings, on)),
        ("", verdict(findings)),
        ("physical limits:", limits(findings, on)),
    ):
        lines += [title, *(line for paragraph in paragraphs for line in wrapped(paragraph))]
    lines += ["", "most worth changing:"]
    for number, (change, gain) in enumerate(findings.found, 1):
        another = " (changes the result)" if change.other_training else ""
        lines += [f"  {number}. {change.option}", *wrapped(f"     expected {gain:.2f} times: {change.why}{another}")]
        if change.instead:
            lines.append(f"     in a part of the epochs only: {change.instead}")
    return lines if findings.found else [*lines, "  nothing that would gain 3 % by the model"]


def chart(findings: Findings) -> list[str]:
    """A line a program, its bar as long as its rate; no longer than the terminal is wide, 80 columns without one."""
    rates = {name: findings.rate(name) for name in findings.samples}
    slowest = 1 / findings.model.costs[findings.model.bottleneck].clock_s
    room = max(8, columns() - 47)
    lines = []
    for name, rate in rates.items():
        share = rate / slowest
        bar = "█" * max(1, round(min(share, LONGEST) / LONGEST * room)) + ("▶" if share > LONGEST else "")
        mark = " bottleneck" if kind_of(name, findings) == "bottleneck" else ""
        lines.append(f"  {name:<13} {shown_rate(rate):>9} {times(share):>7}  {bar}{mark}")
    return lines


def times(share: float) -> str:
    return f"{share:,.0f}×" if share >= 100 else f"{share:.1f}×"


def absent(findings: Findings, on: Setup) -> Iterator[str]:
    """Stages that there are none of, and what was not measured as it should be."""
    if "h2d" not in findings.samples:
        yield "host to device: none (the network runs on the CPU)"
    if "communication" not in findings.samples:
        yield "communication: none (1 rank)"
    if DISK not in findings.samples:
        yield "reading is of the local copies of a URL's shards, in the page cache or not"
    elif findings.stayed is not None and findings.stayed > STAYED:
        yield (
            f"{findings.stayed:.0%} of the shards' pages could not be dropped: "
            f"{DISK!r} has the page cache's help"
        )  # fmt: skip
    if CACHED not in findings.samples:
        yield "the training split does not fit in memory: every epoch reads it from the disk"


def verdict(findings: Findings) -> list[str]:
    """The bottleneck, the others' headroom, the model beside what was seen."""
    model = findings.model
    ceiling = 1 / model.costs[model.bottleneck].clock_s
    headroom = ", ".join(f"{stage} {times(ratio)}" for stage, ratio in model.headroom().items())
    lines = [
        f"bottleneck: {model.bottleneck}, {shown_rate(ceiling)} images/s alone",
        f"headroom of the others: {headroom}",
    ]
    for name, stages in (("loader", LOADING), ("train", None)):
        predicted = model.rate(stages) if stages else model.rate()
        bounds = model.bounds(stages) if stages else model.bounds()
        seen = findings.rate(name)
        lines.append(
            f"{name}: {shown_rate(predicted)} images/s predicted (by {max(bounds, key=lambda one: bounds[one])}), "
            f"{shown_rate(seen)} measured, {seen / predicted:.0%}"
        )
    if not model.on_gpu:
        lines.append("on a CPU all stages share the cores: decoding slows training also where it waits for no data")
    if findings.fits and DISK in findings.samples and findings.rate(DISK) < findings.rate("train"):
        lines.append(f"the first epoch, from the disk: at most {shown_rate(findings.rate(DISK))} images/s")
    return lines


def limits(findings: Findings, on: Setup) -> Iterator[str]:
    """What the hardware could do, with the arithmetic, and the share of it that is reached."""
    if LIBJPEG in findings.samples:
        whole = findings.rate(LIBJPEG)
        yield (
            f"libjpeg-turbo, whole images, {on.threads} threads: {shown_rate(whole)} images/s; "
            f"decode (regions) has {findings.rate('decode') / whole:.0%}"
        )
    encoded, region, out = (size / 1e3 for size in findings.image_bytes)
    moved = encoded + 2 * region + out
    bandwidth = findings.copy_bytes_per_s
    if on.world.device.type == "cpu":
        share = findings.rate("loader") * moved * 1e3 / bandwidth / on.world.world_size
        yield (
            f"memory, by a copy: {bandwidth / 1e9:.1f} GB/s; the loader moves {encoded:,.0f} kB encoded + 2 × "
            f"{region:,.0f} decoded + {out:,.0f} out = {moved:,.0f} kB an image: {share:.1%}"
        )
    network, peak = findings.network, findings.peak[findings.precision] * on.world.world_size
    rate = findings.rate("compute")
    yield (
        f"arithmetic, by a matrix product: {peak / 1e12:.3g} TFLOP/s in {findings.precision}; {network.name} at "
        f"{network.image_size} px takes {network.flops / 1e9:.4g} GFLOP an image "
        f"({network.forward_flops / 1e9:.3g} forward, {(network.flops - network.forward_flops) / 1e9:.3g} backward)"
    )
    most = peak / network.flops
    yield f"  → at most {shown_rate(most)} images/s; compute has {rate / most:.0%} (MFU)"
    for level in network.elements:
        size = network.image_bytes(level, DTYPES[findings.precision])
        most = bandwidth * on.world.world_size / size
        allowed = f"at most {shown_rate(most)} images/s; compute has {rate / most:.0%}"
        yield f"bytes, {level}: {size / 1e6:,.3g} MB an image → {allowed}"


def applied(changes: list[Change], expected: float, seen: Ratio) -> str:
    options = " ".join(change.option for change in changes)
    return f"applied {options}: {expected:.2f} times expected, {seen.median:.2f} seen [{seen.min:.2f}–{seen.max:.2f}]"


def picture(findings: Findings, title: str) -> Any:
    """A matplotlib figure: a bar a program, with its range, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(findings.samples)
    figure, axes = plt.subplots(figsize=(8, 0.5 + 0.42 * len(names)), layout="constrained")
    for place, name in enumerate(names):
        taken = [one.images_per_s for one in findings.samples[name]]
        middle, kind = statistics.median(taken), kind_of(name, findings)
        axes.barh(place, middle, color=COLOURS[kind], hatch=HATCHES[kind], edgecolor="white", height=0.7)
        axes.plot([min(taken), max(taken)], [place, place], color="black", linewidth=1.2, marker="|")
        note = "  bottleneck" if kind == "bottleneck" else ""
        axes.annotate(
            f"{shown_rate(middle)}{note}", (max(taken), place), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    lowest, highest = (f(findings.rate(name) for name in names) for f in (min, max))
    axes.set_xlim(lowest / 3, highest * 8)
    axes.set_xlabel("images/s (logarithmic), median and range")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
