"""The audit on synthetic runs that log the planned samples with the test's own digest, and on wrong ones."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from penstock.commands.audit import audit
from penstock.commands.options import audit_command as main
from penstock.pipeline.plan import EpochPlan
from penstock.recipes import Recipe, TrainConfig
from penstock.recipes.config import to_toml
from penstock.recipes.phases import PhasesConfig
from penstock.shards.format import ShardSet

NUM_TRAIN, BATCH, EPOCHS, SEED = 90, 12, 3, 7
STEPS = NUM_TRAIN // BATCH
Lines = list[dict[str, Any]]


def mix(sample_id: int) -> int:
    """SplitMix64's output for the state `sample_id`, in Python's integers."""
    mask = 2**64 - 1
    x = (sample_id + 1) * 0x9E3779B97F4A7C15 & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def logged(ids: list[int]) -> str:
    return f"{sum(map(mix, ids)) % 2**63:016x}"


def lines_of(epochs: int = EPOCHS, sizes: tuple[int, ...] = (BATCH,) * EPOCHS, repeats: int = 1, **plan: Any) -> Lines:
    """The metrics of an undisturbed run. `plan`: fields of the EpochPlan. Each step's ids stay in its line."""
    lines: Lines = []
    step = 0
    for epoch in range(epochs):
        size, seen = sizes[epoch], []
        order = EpochPlan(num_samples=NUM_TRAIN, seed=SEED, epoch=epoch, **plan).sample_ids(0, NUM_TRAIN).tolist()
        for end in range(size, NUM_TRAIN + 1, size):
            start = (end - size) // repeats
            ids = order[start : start + size // repeats] * repeats
            seen += ids
            lines.append(
                {"kind": "step", "step": step, "epoch": epoch, "position": end, "samples": logged(ids), "ids": ids}
            )
            step += 1
        lines.append({"kind": "epoch", "step": step, "epoch": epoch, "position": end, "samples": logged(seen)})
        lines.append({"kind": "eval", "step": step, "epoch": epoch + 1, "position": 0, "top1": 0.5})
    return lines


@pytest.fixture
def write(tmp_path: Path, dataset: ShardSet) -> Callable[..., Path]:
    """Write a run directory with these metrics, and bad samples as (sample_id, epoch, position)."""

    def run(lines: Lines, bad: tuple[tuple[int, int, int], ...] = (), recipe: Recipe | None = None) -> Path:
        recipe = recipe or Recipe(train=TrainConfig(global_batch_size=BATCH, seed=SEED, epochs=EPOCHS))
        recipe = replace(recipe, data=replace(recipe.data, path=str(dataset.root)))
        (tmp_path / "config.toml").write_text(to_toml(recipe))
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        fields = [dict(zip(("sample_id", "epoch", "position"), row, strict=True)) for row in bad]
        (tmp_path / "quarantine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fields))
        return tmp_path

    return run


def command(run_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [str(run_dir), *arguments])


def test_an_undisturbed_run_is_proven(write: Callable[..., Path]) -> None:
    epochs = audit(write(lines_of()))
    assert [(e.epoch, e.steps, e.samples, e.quarantined, e.left_over) for e in epochs] == [
        (epoch, STEPS, STEPS * BATCH, 0, 6) for epoch in range(EPOCHS)
    ]
    result = command(write(lines_of()))
    assert result.exit_code == 0, result.output
    assert f"proven: the {STEPS * EPOCHS} steps" in result.output
    assert result.output.count("as planned") == EPOCHS


@pytest.mark.parametrize("order", ["block", "sequential"])
def test_other_orders(order: str, write: Callable[..., Path]) -> None:
    recipe = Recipe(train=TrainConfig(global_batch_size=BATCH, seed=SEED, epochs=EPOCHS))
    recipe = replace(recipe, data=replace(recipe.data, order=order, block_size=4, window_blocks=2))
    plan = {"order": order, "block_size": 4, "window_blocks": 2}
    assert not any(epoch.deviation for epoch in audit(write(lines_of(**plan), recipe=recipe)))
    assert all(epoch.deviation for epoch in audit(write(lines_of(), recipe=recipe)))


def test_phases_and_repeats(write: Callable[..., Path]) -> None:
    train = TrainConfig(global_batch_size=BATCH, seed=SEED, epochs=EPOCHS)
    phases = PhasesConfig(start_epochs=(0, 1), global_batch_size=(10, 30))
    lines = lines_of(sizes=(10, 30, 30))
    assert [e.steps for e in audit(write(lines, recipe=Recipe(train=train, phases=phases)))] == [9, 3, 3]
    fitted = lines_of(sizes=(10, 10, 30))  # --max-minutes lets phases begin later
    found = audit(write(fitted, recipe=Recipe(train=train, phases=phases)))
    assert [(e.steps, e.deviation) for e in found] == [(9, ""), (9, ""), (3, "")]
    recipe = Recipe(train=train)
    recipe = replace(recipe, augment=replace(recipe.augment, repeats=3))
    assert not any(epoch.deviation for epoch in audit(write(lines_of(repeats=3), recipe=recipe)))


def test_steps_made_again_count_as_they_were_logged_last(write: Callable[..., Path]) -> None:
    lines = lines_of()
    again = lines[:5] + lines[3:]  # killed after step 4, resumed from step 3
    assert not any(epoch.deviation for epoch in audit(write(again)))
    wrong_first = [*lines[:3], lines[3] | {"samples": "0" * 16}, *lines[3:]]
    assert not any(epoch.deviation for epoch in audit(write(wrong_first)))
    wrong_last = [*lines[:4], lines[3] | {"samples": "0" * 16}, *lines[4:]]
    assert audit(write(wrong_last))[0].deviation == f"step 3 (position {4 * BATCH}) used other samples than planned"


EPOCH = STEPS + 2  # lines


def renumbered(lines: Lines, by: int) -> Lines:
    return [line | {"step": line["step"] + by} for line in lines]


TRAINED_WRONGLY = {
    "none of its steps is in the metrics": lambda a: a[:EPOCH] + a[2 * EPOCH :],
    "the epoch did not end before the next one began": lambda a: a[:3] + renumbered(a[EPOCH:], 3 - STEPS),
    "step 7 is logged where the plan has step 0": lambda a: a[:EPOCH] + renumbered(a, STEPS),
    "step 3 is logged where the plan has step 2": lambda a: a[:3] + renumbered(a[2:], 1),
    "the run ended after 21 steps, but the metrics prove 9": lambda a: [*a[: EPOCH + 2], {"kind": "end", "step": 21}],
    "step 2 comes after step 0": lambda a: [a[0], *a[2:], a[1]],
}


@pytest.mark.parametrize("expected", TRAINED_WRONGLY)
def test_each_line_right_and_the_run_wrong(expected: str, write: Callable[..., Path]) -> None:
    """Epochs that are lost, cut off or trained twice, a batch trained twice, a run that ended too early."""
    found = audit(write(TRAINED_WRONGLY[expected](lines_of())))
    assert expected in [epoch.deviation for epoch in found]
    assert command(write(TRAINED_WRONGLY[expected](lines_of()))).exit_code == 1


def test_a_run_that_ended_and_went_on(write: Callable[..., Path]) -> None:
    ended = [*lines_of(1), {"kind": "end", "step": STEPS}]
    assert not any(epoch.deviation for epoch in audit(write(ended)))
    assert not any(epoch.deviation for epoch in audit(write(ended + lines_of()[EPOCH:])))


def test_a_run_under_way(write: Callable[..., Path]) -> None:
    epochs = audit(write(lines_of()[: STEPS + 2 + 3]))
    assert [(e.steps, e.is_over) for e in epochs] == [(STEPS, True), (3, False)]
    assert epochs[1].verdict == "as planned so far, 4 steps to go"
    hole = lines_of()[:5]
    del hole[2]
    assert audit(write(hole))[0].deviation == "the step that ends at position 36 is not in the metrics"


def test_bad_samples_leave_holes(write: Callable[..., Path]) -> None:
    lines = lines_of()
    bad = lines[STEPS + 2 + 1]["ids"][5]  # first met in epoch 1, its second step, place 5
    position = BATCH + 5
    for line in lines:
        if "ids" in line and line["epoch"] >= 1:
            line["samples"] = logged([i for i in line["ids"] if i != bad])
    for epoch in (1, 2):
        ends = [line for line in lines if line["kind"] == "epoch" and line["epoch"] == epoch]
        ids = [i for line in lines if "ids" in line and line["epoch"] == epoch for i in line["ids"] if i != bad]
        ends[0]["samples"] = logged(ids)
    in_epoch_2 = int(any(bad in line["ids"] for line in lines if "ids" in line and line["epoch"] == 2))
    found = audit(write(lines, ((bad, 1, position),)))
    assert [(e.quarantined, e.deviation) for e in found] == [(0, ""), (1, ""), (in_epoch_2, "")]
    assert [e.samples for e in found] == [84, 83, 84 - in_epoch_2]
    assert audit(write(lines))[1].deviation.startswith(f"step {STEPS + 1} ")  # without the list
    assert audit(write(lines, ((bad, 1, position + 1),)))[1].deviation.startswith(f"step {STEPS + 1} ")  # another place
    assert audit(write(lines, ((bad, 0, 0),)))[0].deviation.startswith("step 0 ")  # earlier than it was


def test_a_sample_is_out_at_its_place_alone_until_the_epoch_ends(write: Callable[..., Path]) -> None:
    recipe = Recipe(train=TrainConfig(global_batch_size=BATCH, seed=SEED, epochs=EPOCHS))
    recipe = replace(recipe, augment=replace(recipe.augment, repeats=2))
    lines = lines_of(epochs=1, repeats=2)[:1]
    first, *rest = lines[0]["ids"]
    assert first in rest  # the same image again, whose other crop was decoded
    lines[0]["samples"] = logged(rest)
    assert [(e.quarantined, e.deviation) for e in audit(write(lines, ((first, 0, 0),), recipe))] == [(1, "")]


def _swap(lines: Lines) -> None:
    lines[2]["samples"], lines[3]["samples"] = lines[3]["samples"], lines[2]["samples"]


def _repeat(lines: Lines) -> None:
    lines[4]["samples"] = logged([*lines[4]["ids"][:-1], lines[4]["ids"][0]])


def _other_epoch(lines: Lines) -> None:
    lines[STEPS + 2]["samples"] = lines[0]["samples"]


WRONG: dict[str, tuple[Callable[[Lines], Any], str]] = {
    "swapped": (_swap, "epoch 0: step 2 (position 36) used other samples than planned"),
    "repeated": (_repeat, "epoch 0: step 4 (position 60) used other samples than planned"),
    "order of another epoch": (_other_epoch, "epoch 1: step 7 (position 12) used other samples than planned"),
    "missing": (lambda lines: lines.pop(3), "epoch 0: the step that ends at position 48 is not in the metrics"),
    "last one missing": (
        lambda lines: lines.pop(6),
        "epoch 0: the step that ends at position 84 is not in the metrics",
    ),
    "shifted": (lambda lines: lines[2].update(position=37), "epoch 0: the step that ends at position 36 is not"),
    "one more": (
        lambda lines: lines.insert(7, lines[6] | {"position": 96}),
        "epoch 0: step 6 ends at position 96, where",
    ),
    "sum": (lambda lines: lines[7].update(samples="0" * 16), "epoch 0: the digest of the whole epoch is not the sum"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str, write: Callable[..., Path]) -> None:
    lines = lines_of()
    change, message = WRONG[name]
    change(lines)
    result = command(write(lines))
    assert result.exit_code == 1
    assert message in result.output
    assert "proven" not in result.output


def test_another_seed_or_batch_is_not_the_run(write: Callable[..., Path]) -> None:
    for train in (TrainConfig(global_batch_size=BATCH, seed=SEED + 1), TrainConfig(global_batch_size=6, seed=SEED)):
        assert all(epoch.deviation for epoch in audit(write(lines_of(), recipe=Recipe(train=train))))


def test_another_dataset_is_called_that(write: Callable[..., Path], dataset: ShardSet, dataset_copy: Path) -> None:
    run_dir = write(lines_of())
    other = ShardSet.open(dataset_copy)
    info = json.loads((other.root / "dataset.json").read_text())
    info["made"]["seed"] = 12345
    (other.root / "dataset.json").write_text(json.dumps(info))
    noted = {"dataset": dataset.fingerprint, "splits": {"train": NUM_TRAIN}}
    (run_dir / "env.json").write_text(json.dumps(noted))
    assert command(run_dir).exit_code == 0
    result = command(run_dir, "--data", str(dataset_copy))
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert (
        f"was trained on another dataset than {dataset_copy} (the same number of images in train, but" in result.output
    )
    (run_dir / "env.json").write_text(json.dumps(noted | {"dataset": "0", "splits": {"train": 1234}}))
    assert (
        "(90 images in train here, 1,234 in the run's). Give the run's dataset with --data if it"
        in command(run_dir).output
    )
    for unknown in ("{}", "[]", '{"dataset": 3}', "{"):  # of an earlier version, or cut off: the digests tell
        (run_dir / "env.json").write_text(unknown)
        assert command(run_dir).exit_code == 0


def test_what_cannot_be_audited_says_why(write: Callable[..., Path], tmp_path: Path) -> None:
    assert "is not a run directory" in command(tmp_path / "none").output
    assert "no steps yet" in command(write([])).output
    lines = lines_of()
    del lines[3]["samples"]
    assert "no digest of its samples" in command(write(lines)).output
    result = command(write(lines_of()), "--data", str(tmp_path / "gone"))
    assert result.exit_code == 1
    assert "no packed dataset here" in result.output
