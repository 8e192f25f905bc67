"""Prove from a run's metrics which samples it used: `python train.py audit RUN`.

Input: RUN/metrics.jsonl, in which each step has a digest of the samples that all ranks saw, RUN/config.toml,
RUN/quarantine.jsonl, and the dataset's tables. The plan defines which samples each step should have seen. The audit
computes their digests again and compares them, step by step and epoch by epoch. Output: a table. If a step deviates,
the audit reports the first one and exits with code 1.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeGuard

import click
import numpy as np

from penstock.pipeline.feed import Feed
from penstock.pipeline.holes import NO_SAMPLE
from penstock.pipeline.plan import Span
from penstock.recipes import Recipe, recipe_at
from penstock.recipes.config import load_config
from penstock.shards.format import ShardSet, Split
from penstock.training import quarantine
from penstock.training.digest import INT63, sample_digest
from penstock.training.metrics import read_metrics
from penstock.training.refusal import told_in_a_line
from penstock.training.run_dir import CONFIG_FILE, ENVIRONMENT_FILE

_AT_ONCE = 1 << 16  # number of samples that are hashed together


@dataclass(frozen=True)
class Epoch:
    """The result for one epoch. steps: how many of the `num_steps` agree with the plan. samples: used by those steps,
    without `quarantined` ones. left_over: samples at the epoch's end that do not fill a global batch.
    deviation: the first one, "" for none.
    """

    epoch: int
    num_steps: int
    left_over: int
    steps: int
    samples: int
    quarantined: int
    is_over: bool
    deviation: str

    def deviating(self, how: str) -> "Epoch":
        """Record a deviation. The first one is kept."""
        return self if self.deviation else replace(self, deviation=how)

    @property
    def verdict(self) -> str:
        if self.deviation:
            return self.deviation
        return "as planned" if self.is_over else f"as planned so far, {self.num_steps - self.steps} steps to go"


class _Line(NamedTuple):
    """A step's or an epoch's line in the metrics. position: after it. samples: the digest that was logged."""

    step: int
    epoch: int
    position: int
    samples: str


@dataclass
class _Logged:
    """An epoch's lines. steps: position after a step → the line that was logged last for it. jump: describes the first
    line that does not follow the one before it, "" for none."""

    steps: dict[int, _Line] = field(default_factory=dict)
    end: _Line | None = None
    jump: str = ""


@dataclass
class _Seen:
    """What the steps of an epoch used. times: how often each sample was used. unplanned: lines at positions where the
    plan has no step. total: the digest of the planned samples. missing: the position after the first step without a
    line, 0 for none. steps, quarantined, deviation: see `Epoch`."""

    times: np.ndarray
    unplanned: dict[int, _Line]
    total: int = 0
    missing: int = 0
    steps: int = 0
    quarantined: int = 0
    deviation: str = ""


def audit(run_dir: Path, data: str | None = None) -> list[Epoch]:
    """Return the result for every epoch in the metrics, in order. `data`: where the dataset is now, if it has moved.

    Raises ValueError if the run or the dataset cannot be read, the metrics have no digests, or the run used another
    dataset.
    """
    logged, last_step = _logged(run_dir)
    recipe = load_config(Recipe, run_dir / CONFIG_FILE)
    dataset = ShardSet.open(data or recipe.data.path, recipe.data.cache_dir, recipe.data.store_timeout_s)
    split = dataset.split(recipe.data.train_split)
    _check_dataset(run_dir, dataset, split, data)
    out = quarantine.records(run_dir)
    found: list[Epoch] = []
    for epoch in range(max(logged) + 1):
        steps_before = sum(earlier.num_steps for earlier in found)
        found.append(_compared(epoch, logged.get(epoch, _Logged()), recipe, split, out, steps_before))
        if epoch < max(logged) and not found[-1].is_over:
            found[-1] = found[-1].deviating("the epoch did not end before the next one began")
    num_steps = sum(epoch.steps for epoch in found)
    if last_step is not None and num_steps != last_step:
        found[-1] = found[-1].deviating(f"the run ended after {last_step} steps, but the metrics prove {num_steps}")
    return found


def _check_dataset(run_dir: Path, dataset: ShardSet, split: Split, data: str | None) -> None:
    """Raise ValueError if the run recorded another dataset. Runs of earlier versions recorded none."""
    try:
        noted = json.loads((run_dir / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
        fingerprint, num_images = noted["dataset"], int(noted["splits"][split.name])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    if fingerprint == dataset.fingerprint:
        return
    difference = f"{len(split):,} images in {split.name} here, {num_images:,} in the run's"
    if num_images == len(split):
        difference = f"the same number of images in {split.name}, but other images or packed differently"
    moved = "" if data else " if it has moved"
    raise ValueError(
        f"{run_dir}: was trained on another dataset than {dataset.root} ({difference}). "
        f"Give the run's dataset with --data{moved}"
    )


def _logged(run_dir: Path) -> tuple[dict[int, _Logged], int | None]:
    """The lines by epoch, and the number of steps after which the run ended if its end was logged last."""
    epochs: dict[int, _Logged] = {}
    last, last_step = -1, None
    for fields in read_metrics(run_dir):
        step = fields.get("step")
        if fields["kind"] == "end" and type(step) is int:
            last_step = step
        if fields["kind"] not in ("step", "epoch"):
            continue
        line = _line(fields, run_dir)
        found = epochs.setdefault(line.epoch, _Logged())
        if fields["kind"] == "step":
            if line.step > last + 1:  # smaller numbers are fine: a restart repeats steps
                found.jump = found.jump or f"step {line.step} comes after step {last}"
            last, last_step = line.step, None
            found.steps[line.position] = line
        else:
            found.end = line
    if not epochs:
        raise ValueError(f"{run_dir}: the metrics have no steps yet, so there is nothing to audit")
    return epochs, last_step


def _line(fields: Mapping[str, object], run_dir: Path) -> _Line:
    step, epoch, position, samples = (fields.get(name) for name in _Line._fields)
    if not (_is_count(step) and _is_count(epoch) and _is_count(position) and isinstance(samples, str)):
        raise ValueError(f"{run_dir}: a line of the metrics has no digest of its samples: {fields}"[:300])
    return _Line(step, epoch, position, samples)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _compared(
    epoch: int, lines: _Logged, recipe: Recipe, split: Split, out: list[quarantine.Record], steps_before: int
) -> Epoch:
    size = _global_batch_size(epoch, lines, recipe)
    num_steps, left_over = divmod(len(split), size)
    seen = _Seen(np.zeros(len(split), np.uint8), unplanned=dict(lines.steps))
    if not lines.steps:
        return Epoch(epoch, num_steps, left_over, 0, 0, 0, lines.end is not None, "none of its steps is in the metrics")
    for position, ids in _planned(epoch, size, recipe, split):
        blanked = _without(ids, position - size, epoch, out)
        digest = sample_digest(blanked)
        seen.total = (seen.total + digest) & INT63
        line = seen.unplanned.pop(position, None)
        if line is None:
            seen.missing = seen.missing or position
            continue
        number, as_planned = steps_before + position // size - 1, line.samples == f"{digest:016x}"
        if line.step != number:
            seen.deviation = seen.deviation or f"step {line.step} is logged where the plan has step {number}"
        elif not as_planned:
            what = "used other samples than planned"
            seen.deviation = seen.deviation or f"step {line.step} (position {position}) {what}"
        if as_planned:
            np.add.at(seen.times, ids, 1)
            seen.steps += 1
            seen.quarantined += int((blanked == NO_SAMPLE).sum())
    deviation = seen.deviation or _deviation(lines, seen, size, recipe.augment.repeats)
    samples = seen.steps * size - seen.quarantined
    return Epoch(epoch, num_steps, left_over, seen.steps, samples, seen.quarantined, lines.end is not None, deviation)


def _deviation(lines: _Logged, seen: _Seen, size: int, repeats: int) -> str:
    """How an epoch deviates from the plan although each logged step of `size` samples agrees; "" for not at all."""
    if seen.missing and (lines.end is not None or seen.missing <= seen.steps * size):
        return f"the step that ends at position {seen.missing} is not in the metrics"
    if lines.jump:
        return lines.jump
    for position, line in seen.unplanned.items():
        return f"step {line.step} ends at position {position}, where the plan has no step"
    if seen.times.max() > repeats:
        return f"sample {int(seen.times.argmax())} was used {int(seen.times.max())} times"
    if lines.end is not None and lines.end.samples != f"{seen.total:016x}":
        return "the digest of the whole epoch is not the sum of its steps' digests"
    return ""


def _global_batch_size(epoch: int, lines: _Logged, recipe: Recipe) -> int:
    """The global batch size of an epoch: the recipe's, or in a run with a time limit, which moves phases, the log's."""
    planned = recipe_at(recipe, epoch).train.global_batch_size
    positions = [0, *sorted(lines.steps)]
    seen = min((b - a for a, b in pairwise(positions)), default=planned)
    return seen if seen in recipe.phases.global_batch_size else planned


def _planned(epoch: int, size: int, recipe: Recipe, split: Split) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the position after each step of an epoch, and the step's planned ids: (size,) int64."""
    feed = Feed(split=split, config=recipe.data, augment=recipe.augment, batch_size=size, global_batch_size=size,
                seed=recipe.train.seed)  # fmt: skip
    num_steps = len(split) // size
    at_once = max(1, _AT_ONCE // size)
    for first in range(0, num_steps, at_once):
        count = min(at_once, num_steps - first)
        ids = feed.sample_ids(epoch, [Span(first * size, count * size, (first + count) * size)])
        for i, row in enumerate(ids.reshape(count, size), start=first + 1):
            yield i * size, row


def _without(ids: np.ndarray, start: int, epoch: int, out: list[quarantine.Record]) -> np.ndarray:
    """The ids without the samples that were quarantined in an earlier epoch, or in this one at their position."""
    if not out:
        return ids
    ids = ids.copy()
    before = [record.sample_id for record in out if record.epoch < epoch]
    ids[np.isin(ids, before)] = NO_SAMPLE
    here = [record.position - start for record in out if record.epoch == epoch]
    ids[[place for place in here if 0 <= place < len(ids)]] = NO_SAMPLE
    return ids


def run(run_dir: Path, data: str | None) -> None:
    """Run `train.py audit`. Its options are in commands/options.py."""
    with told_in_a_line(run_dir):
        epochs = audit(run_dir, data)
    click.echo(f"{'epoch':>6}{'steps':>9}{'samples':>12}{'quarantined':>13}{'left over':>11}  verdict")
    for epoch in epochs:
        click.echo(f"{epoch.epoch:>6}{epoch.steps:>9,}{epoch.samples:>12,}{epoch.quarantined:>13,}{epoch.left_over:>11,}"
                   f"  {epoch.verdict}")  # fmt: skip
    wrong = next((epoch for epoch in epochs if epoch.deviation), None)
    if wrong:
        click.echo(f"epoch {wrong.epoch}: {wrong.deviation}", err=True)
        sys.exit(1)
    steps = sum(epoch.steps for epoch in epochs)
    click.echo(f"proven: the {steps:,} steps used exactly the planned samples of each epoch")
