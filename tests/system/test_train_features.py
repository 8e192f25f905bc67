"""Features of `train.py` recipes: averages, phases, budgets, kept checkpoints, failed steps and replay."""

import gc
import json
import math
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from penstock import train
from penstock.commands.trained_network import load_network
from penstock.model.config import EmaConfig
from penstock.model.ema import Ema
from penstock.recipes import Recipe
from penstock.recipes.config import load_config
from penstock.shards.format import ShardSet
from penstock.training import checkpoint
from penstock.training.step import train_step
from penstock.training.step_log import StepLog
from tests.common import forked
from tests.common.checkpoints import write_checkpoint
from tests.common.runs import NUM_VAL, ROOT, SMALL, STEPS_PER_EPOCH, arguments, by_step, lines, run, start


def state_of(run_dir: Path, name: str = "last.pt") -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / name, weights_only=True)["state"]


def test_the_average_is_scored_saved_and_resumed(dataset_dir: Path, tmp_path: Path) -> None:
    settings = {"ema__decay": 0.9, "ema__warmup": "false"}
    assert run(dataset_dir, tmp_path / "whole", **settings).exit_code == 0
    last = lines(tmp_path / "whole", "eval")[-1]
    assert {"top1", "ema_top1", "ema_top5", "ema_loss"} <= last.keys()
    assert last["ema_loss"] != last["loss"]
    assert run(dataset_dir, tmp_path / "cut", "--max-steps", "9", **settings).exit_code == 0
    assert run(dataset_dir, tmp_path / "cut", **settings).exit_code == 0
    whole, cut = state_of(tmp_path / "whole"), state_of(tmp_path / "cut")
    assert all(torch.equal(whole["ema"][name], cut["ema"][name]) for name in whole["ema"])
    assert any(not torch.equal(whole["ema"][name], whole["net"][name]) for name in whole["net"])


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_equals_torchs_own(warmup: bool) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    ours = Ema(net, EmaConfig(decay=0.8, warmup=warmup))
    decays = [ours.decay_at(step) for step in range(40)]
    assert decays[0] == (0.1 if warmup else 0.8)
    assert decays[-1] == 0.8
    expected = [p.detach().clone().double() for p in net.parameters()]
    average_fn = torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)
    constant = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=average_fn, use_buffers=True)
    constant.update_parameters(net)  # the first call copies
    for step in range(40):
        for p in net.parameters():
            p.data += torch.randn_like(p)
        net(torch.randn(8, 3))
        ours.update(net, step)
        constant.update_parameters(net)
        expected = [
            decays[step] * e + (1 - decays[step]) * p.double() for e, p in zip(expected, net.parameters(), strict=True)
        ]
    for average, want in zip(ours.net.parameters(), expected, strict=True):
        torch.testing.assert_close(average.double(), want, rtol=1e-5, atol=1e-6)
    if not warmup:
        for average, want in zip(ours.net.parameters(), constant.module.parameters(), strict=True):
            torch.testing.assert_close(average, want)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(ours.net[1], name), getattr(constant.module[1], name))
    assert not torch.equal(ours.net[1].running_mean, net[1].running_mean)
    assert ours.net[1].num_batches_tracked == net[1].num_batches_tracked == 40
    assert not ours.net.training


def test_phases_change_size_batch_and_strength_and_a_resume_finds_them(dataset_dir: Path, tmp_path: Path) -> None:
    phases = {
        "train__epochs": 3, "phases__start_epochs": "[0, 1, 2]", "phases__image_size": "[16, 24, 32]",
        "phases__global_batch_size": "[12, 18, 30]", "phases__augment_strength": "[0.0, 0.5, 1.0]",
    }  # fmt: skip
    assert run(dataset_dir, tmp_path / "whole", **phases).exit_code == 0
    steps = lines(tmp_path / "whole", "step")
    assert [sum(line["epoch"] == epoch for line in steps) for epoch in range(3)] == [7, 5, 3]
    assert {line["position"] for line in steps if line["epoch"] == 2} == {30, 60, 90}
    assert run(dataset_dir, tmp_path / "cut", "--max-steps", "9", **phases).exit_code == 0
    assert run(dataset_dir, tmp_path / "cut", **phases).exit_code == 0
    assert by_step(tmp_path / "cut", "loss") == by_step(tmp_path / "whole", "loss")
    assert by_step(tmp_path / "cut", "lr") == by_step(tmp_path / "whole", "lr")


def test_rebuilding_the_pipeline_for_each_phase_leaks_no_memory(dataset_dir: Path, tmp_path: Path) -> None:
    def resident_mb() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    def phased(name: str, num_phases: int) -> None:
        sizes = [32 + 2 * (epoch % 2) for epoch in range(num_phases)]
        result = run(
            dataset_dir, tmp_path / name, train__epochs=num_phases, train__eval_every=99,
            phases__start_epochs=list(range(num_phases)), phases__image_size=sizes,
        )  # fmt: skip
        assert result.exit_code == 0, result.output

    phased("warm", 4)
    before = resident_mb()
    phased("many", 12)
    assert resident_mb() - before < 50, "12 pipelines of about 10 MB each"


def test_the_newest_checkpoints_are_kept_and_a_broken_one_falls_back(dataset_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = {"train__checkpoint_every": 2, "train__keep_checkpoints": 3}
    assert run(dataset_dir, run_dir, "--max-steps", "9", **settings).exit_code == 0
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["best.pt", "last.pt", "step-00000007.pt", "step-00000008.pt", "step-00000009.pt"]
    newest = run_dir / "checkpoints/step-00000009.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])  # last.pt is the same file
    result = run(dataset_dir, run_dir, **settings)
    assert result.exit_code == 0, result.output
    assert "last.pt: not a readable checkpoint" in result.output
    assert "step-00000008.pt, step 8" in result.output
    assert run(dataset_dir, tmp_path / "whole", **settings).exit_code == 0
    assert by_step(run_dir, "loss") == by_step(tmp_path / "whole", "loss")


def test_a_checkpoint_is_of_the_step_it_was_asked_for(tmp_path: Path) -> None:
    """Training continues while the thread writes: in-place changes must not show."""
    weights = torch.zeros(1_000_000)
    with checkpoint.Writer(tmp_path, keep=2, on_error=pytest.fail) as writer:
        for step in range(3):
            weights.fill_(step)
            writer.save(step, {"weights": weights, "nested": [{"step": step}]})
            weights.fill_(-1)
    for step in (1, 2):
        state = checkpoint.load(checkpoint.step_path(tmp_path, step))
        assert state["weights"].unique().tolist() == [step]
        assert state["nested"] == [{"step": step}]
    assert not checkpoint.step_path(tmp_path, 0).exists()


def test_a_failing_write_costs_a_line_and_leaves_the_one_before(tmp_path: Path) -> None:
    said: list[str] = []
    with checkpoint.Writer(tmp_path, keep=2, on_error=said.append) as writer:
        writer.save(1, {"step": 1})
        writer.save(2, {"step": lambda: None})  # cannot be written
    assert len(said) == 1
    assert "step-00000002.pt: cannot write" in said[0]
    assert checkpoint.load(checkpoint.last_path(tmp_path))["step"] == 1
    assert [path.name for path in checkpoint.candidates(tmp_path)] == ["last.pt", "step-00000001.pt"]


BREAKS = {"optimizer__lr": 1e20, "schedule__warmup_epochs": 0, "train__log_every": 3}


@pytest.fixture(scope="module")
def failed(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that ends in NaN, and its output."""
    run_dir = tmp_path_factory.mktemp("failed") / "run"
    result = run(dataset_dir, run_dir, **BREAKS)
    assert result.exit_code == 1
    return run_dir, result.output


def test_a_loss_that_is_no_number_ends_the_run_with_its_samples(failed: tuple[Path, str]) -> None:
    run_dir, output = failed
    errors = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "the loss is nan" in errors[0]
    assert "train.py replay" in errors[0]
    step = next(line["step"] for line in lines(run_dir, "step") if line["loss"] is None)
    assert f"step {step} " in errors[0]
    state = checkpoint.load(run_dir / f"failed-step-{step:08}.pt")
    assert len(state["failed"]["sample_ids"]) == 12
    assert all(torch.isfinite(tensor).all() for tensor in state["net"].values()), "the state is from before"
    assert all(str(i) in errors[0] for i in state["failed"]["sample_ids"][:8])


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures come an interval late, as on a GPU."""
    monkeypatch.setattr(StepLog, "is_deferred", True)


@pytest.mark.usefixtures("deferred")
def test_figures_that_come_late_are_the_same(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at a checkpoint all are there, since a resume starts after it."""
    settings = {"train__log_every": 2, "train__checkpoint_every": 5, "ema__decay": 0.9}
    save = checkpoint.Writer.save

    def all_told(writer: checkpoint.Writer, step: int, *arguments: Any) -> None:
        assert [line["step"] for line in lines(tmp_path / "late", "step")] == list(range(step))
        save(writer, step, *arguments)

    monkeypatch.setattr(checkpoint.Writer, "save", all_told)
    assert run(dataset_dir, tmp_path / "late", **settings).exit_code == 0
    monkeypatch.undo()
    assert run(dataset_dir, tmp_path / "at-once", **settings).exit_code == 0
    for kind in ("step", "eval", "epoch"):
        late, at_once = (lines(tmp_path / name, kind) for name in ("late", "at-once"))
        assert [without_times(line) for line in late] == [without_times(line) for line in at_once]


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in ("images_per_s", "data_wait")}


@pytest.mark.usefixtures("deferred")
def test_a_failed_step_that_is_seen_late_is_replayed_from_before_it(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss breaks in step 3, the second of an interval; it is seen after step 5, and the replay starts at 2."""
    made: list[int] = []

    def broken(*arguments: Any) -> Any:
        step = train_step(*arguments)
        made.append(len(made))
        return step._replace(loss=step.loss * math.nan) if made[-1] == 3 else step

    monkeypatch.setattr("penstock.training.step.train_step", broken)
    result = run(dataset_dir, tmp_path / "run", train__log_every=2)
    assert result.exit_code == 1
    assert "step 3 (epoch 0" in result.output
    assert made[-1] == 5
    (file,) = (tmp_path / "run").glob("failed-step-*.pt")
    state = checkpoint.load(file)
    assert (state["failed"]["step"], state["at"]["step"]) == (3, 2)
    assert {"recipe", "classes", "net", "optimizer"} <= state.keys()
    assert [line["step"] for line in lines(tmp_path / "run", "step")] == [0, 1, 2, 3]


@pytest.mark.usefixtures("deferred")
def test_weights_that_are_no_numbers_are_seen_late_too(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def broken(learner: Any, *arguments: Any) -> Any:
        found = train_step(learner, *arguments)
        made.append(len(made))
        if made[-1] == 3:  # the last of its interval: its loss is still a number
            next(learner.net.parameters()).data[0] = math.inf
        return found

    monkeypatch.setattr("penstock.training.step.train_step", broken)
    result = run(dataset_dir, tmp_path / "run", train__log_every=2)
    assert result.exit_code == 1
    assert "step 3" in result.output
    assert "weights are NaN or infinite" in result.output
    (file,) = (tmp_path / "run").glob("failed-step-*.pt")
    assert checkpoint.load(file)["at"]["step"] == 2


def test_replay_feeds_exactly_the_failed_batch(failed: tuple[Path, str]) -> None:
    run_dir, _ = failed
    file = next(run_dir.glob("failed-step-*.pt"))
    step = checkpoint.load(file)["failed"]["step"]
    result = CliRunner().invoke(train.main, ["replay", str(file), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "the batch has the failed step's 12 samples in the same order" in result.output
    losses = {}
    for line in result.output.splitlines():
        if line.startswith("step ") and "loss" in line:
            losses[int(line.split()[1].rstrip(":"))] = float(line.split("loss ")[1].split(",")[0])
    logged = {s: math.nan if loss is None else loss for s, loss in by_step(run_dir, "loss").items()}
    for s, loss in losses.items():
        assert (math.isnan(loss) and math.isnan(logged[s])) or loss == pytest.approx(logged[s], rel=1e-4), s
    assert math.isnan(losses[step])
    assert "the first module with a NaN or infinite output is" in result.output


def test_replay_of_a_run_on_two_ranks_with_mixing(dataset_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(dataset_dir, run_dir, ranks=2, augment__mixup=0.4, augment__cutmix=1.0, **BREAKS)
    output = process.communicate(timeout=180)[0]
    assert process.returncode != 0
    assert output.count("Error: step") == 2, "each rank says so, and none hangs"
    assert all("distributed/run.py" in trace for trace in output.split("Traceback (most recent call last):")[1:])
    result = CliRunner().invoke(train.main, ["replay", str(next(run_dir.glob("failed-*.pt"))), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "the batch has the failed step's 12 samples in the same order" in result.output
    first = next(line for line in result.output.splitlines() if line.startswith("step 0: loss"))
    assert float(first.split("loss ")[1].split(",")[0]) == pytest.approx(by_step(run_dir, "loss")[0], rel=1e-4)


@pytest.mark.parametrize(
    ("make", "expected"),
    [(lambda run_dir: run_dir / "nowhere.pt", "no such checkpoint"),
     (lambda run_dir: run_dir / "env.json", "not a readable checkpoint"),
     (lambda run_dir: run_dir / "checkpoints/last.pt", "not of a failed step")],
)  # fmt: skip
def test_replay_of_another_file_is_one_line(make: Any, expected: str, dataset_dir: Path, tmp_path: Path) -> None:
    assert run(dataset_dir, tmp_path / "run", "--max-steps", "1").exit_code == 0
    result = CliRunner().invoke(train.main, ["replay", str(make(tmp_path / "run"))])
    assert result.exit_code == 1
    assert expected in result.output
    assert len(result.output.splitlines()) == 1


def test_a_time_budget_goes_through_the_whole_schedule(dataset_dir: Path, tmp_path: Path) -> None:
    assert (
        run(dataset_dir, tmp_path / "first", "--max-steps", "1").exit_code == 0
    )  # what is imported late is then there
    run_dir = tmp_path / "run"
    began = time.perf_counter()
    result = run(dataset_dir, run_dir, "--max-minutes", "0.15", train__epochs=1000, schedule__warmup_epochs=5)
    assert result.exit_code == 0, result.output
    assert time.perf_counter() - began < 120, "on a busy machine, too"
    rates = [line["lr"] for line in lines(run_dir, "step")]
    peak = rates.index(max(rates))
    assert 0 < peak < len(rates) - 1
    assert rates[-1] < max(rates), "how far down depends on how even the machine is"
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert lines(run_dir, "eval")[-1]["num_images"] == NUM_VAL
    (end,) = lines(run_dir, "end")
    assert end["epoch"] < 1000
    assert (end["ended_by"], end["epochs"]) == ("max_minutes", 1000)
    assert f"Finished after step {end['step']}: --max-minutes shortened the 1000 epochs to " in result.output


def test_ranks_stay_together_whenever_they_started_and_whatever_they_score(dataset_dir: Path, tmp_path: Path) -> None:
    """Where they do not, one validates or ends while the other trains. Of two images one rank has both."""
    program = tmp_path / "late.py"
    program.write_text(
        f"import os, sys, time\nsys.path.insert(0, {str(ROOT)!r})\nimport train, training.run\n"
        "train.main(obj=time.perf_counter() - 5 * int(os.environ['RANK']))\n"
    )
    words = arguments(
        dataset_dir, tmp_path / "run", "--max-minutes", "0.25", "--max-val-images", "2", train__epochs=1000
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    done = forked.run([*launcher, program, *words], timeout=300)
    assert done.returncode == 0, done.stderr
    assert "--max-minutes shortened the 1000 epochs" in done.stdout
    assert "on 2/19 images" in done.stdout


def test_a_budget_that_is_enough_changes_nothing(dataset_dir: Path, tmp_path: Path) -> None:
    assert run(dataset_dir, tmp_path / "a", "--max-steps", "8").exit_code == 0
    assert run(dataset_dir, tmp_path / "b", "--max-steps", "8", "--max-minutes", "60").exit_code == 0
    assert by_step(tmp_path / "a", "loss") == by_step(tmp_path / "b", "loss")
    assert list(by_step(tmp_path / "b", "lr").values()) == pytest.approx(list(by_step(tmp_path / "a", "lr").values()))


def test_clipping_bounds_the_step_and_logs_the_norm(dataset_dir: Path, tmp_path: Path) -> None:
    plain = {"train__clip_grad_norm": 1e-9, "optimizer__weight_decay": 0.0, "optimizer__momentum": 0.0,
             "optimizer__nesterov": "false"}  # fmt: skip
    assert run(dataset_dir, tmp_path / "run", "--max-steps", "3", **plain).exit_code == 0
    norms = by_step(tmp_path / "run", "grad_norm")
    assert len(norms) == 3
    assert all(norm > 1e-3 for norm in norms.values()), "the norm before it is clipped"
    assert run(dataset_dir, tmp_path / "start", "--max-steps", "0", **plain).exit_code == 0
    weights = [state_of(tmp_path / name)["net"]["fc.weight"] for name in ("run", "start")]
    assert (weights[0] - weights[1]).norm() < 1e-8


def test_the_test_split_is_scored_once_at_the_end(dataset_dir: Path, tmp_path: Path) -> None:
    assert run(dataset_dir, tmp_path / "run", data__test_split="val", train__val_flip="true").exit_code == 0
    (tested,) = lines(tmp_path / "run", "test")
    assert tested["num_images"] == NUM_VAL
    assert tested["top1"] == lines(tmp_path / "run", "eval")[-1]["top1"]
    missing = run(dataset_dir, tmp_path / "other", data__test_split="tset")
    assert missing.exit_code == 1
    assert "train, val" in missing.output
    assert not (tmp_path / "other/metrics.jsonl").exists(), "found out before any training"


def test_eval_repeats_the_runs_own_figures(dataset_dir: Path, tmp_path: Path) -> None:
    assert run(dataset_dir, tmp_path / "run", ema__decay=0.5).exit_code == 0
    expected = lines(tmp_path / "run", "eval")[-1]
    for weights, prefix in (("raw", ""), ("ema", "ema_")):
        last = str(tmp_path / "run/checkpoints/last.pt")
        result = CliRunner().invoke(train.main, ["eval", last, "--weights", weights, "--json", "--device", "cpu"])
        assert result.exit_code == 0, result.output
        figures = json.loads(result.output)
        assert figures["top1"] == expected[f"{prefix}top1"]
        assert figures["loss"] == pytest.approx(expected[f"{prefix}loss"], rel=1e-5)
        assert figures["num_images"] == NUM_VAL
    larger = CliRunner().invoke(train.main, ["eval", str(tmp_path / "run"), "--image-size", "48", "--device", "cpu"])
    assert larger.exit_code == 0, larger.output


def test_a_run_repeats_from_the_config_that_it_saved(dataset_dir: Path, tmp_path: Path) -> None:
    assert run(dataset_dir, tmp_path / "a", "--max-steps", "3").exit_code == 0
    again = ["--recipe", str(tmp_path / "a/config.toml"), "--run-dir", str(tmp_path / "b"), "--max-steps", "3"]
    result = CliRunner().invoke(train.main, [*again, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert by_step(tmp_path / "b", "loss") == by_step(tmp_path / "a", "loss")


def test_show_config_prints_what_a_run_would_save(dataset_dir: Path, tmp_path: Path) -> None:
    given = arguments(dataset_dir, tmp_path / "run")
    result = CliRunner().invoke(train.main, [*given, "--show-config"])
    assert result.exit_code == 0
    assert tomllib.loads(result.output)["train"]["global_batch_size"] == 12
    assert not (tmp_path / "run").exists()
    assert run(dataset_dir, tmp_path / "run", "--max-steps", "0").exit_code == 0
    (tmp_path / "shown.toml").write_text(result.output)
    shown, saved = (load_config(Recipe, file) for file in (tmp_path / "shown.toml", tmp_path / "run/config.toml"))
    assert shown == saved


def test_epochs_have_the_digest_of_their_steps(dataset_dir: Path, tmp_path: Path) -> None:
    assert run(dataset_dir, tmp_path / "run", "--max-steps", "10").exit_code == 0
    assert run(dataset_dir, tmp_path / "run").exit_code == 0
    for epoch in lines(tmp_path / "run", "epoch"):
        steps = {line["step"]: line for line in lines(tmp_path / "run", "step") if line["epoch"] == epoch["epoch"]}
        assert len(steps) == STEPS_PER_EPOCH
        assert int(epoch["samples"], 16) == sum(int(line["samples"], 16) for line in steps.values()) % 2**63


def test_a_run_starts_from_the_weights_and_says_what_became_of_the_head(dataset_dir: Path, tmp_path: Path) -> None:
    """A dataset's own classes are scored as the checkpoint scored them. Other classes are learnt from scratch."""
    own = [{"wnid": info.wnid, "name": info.name} for info in ShardSet.open(dataset_dir).classes]
    recipe = load_config(Recipe, None, [f"{key}={value}" for key, value in SMALL.items()])
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, classes, told in (
        ("own", own, ""),
        ("turned", own[::-1], "; fc keeps the rows of the dataset's classes, in the dataset's order"),
        (
            "others",
            [{"wnid": word, "name": word} for word in "abc"],
            "; fc is reinitialised, 3 → 3 classes, none in common",
        ),
    ):
        net = write_checkpoint(tmp_path / f"{name}.pt", recipe, classes=classes).eval()
        run_dir = tmp_path / name
        result = run(dataset_dir, run_dir, "--max-steps", "0", model__pretrained=tmp_path / f"{name}.pt")
        assert result.exit_code == 0, result.output
        (line,) = [line for line in result.output.splitlines() if line.startswith("pretrained weights: ")]
        assert line.startswith(f"pretrained weights: {tmp_path}/{name}.pt{told}")
        logits = load_network(run_dir, device=torch.device("cpu")).net(images)
        expected = net(images)[:, [2, 1, 0] if name == "turned" else [0, 1, 2]]
        assert torch.equal(logits, expected) == (name != "others")
