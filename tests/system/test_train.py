"""`train.py` from a user's view: a whole run, kills and resumes, other world sizes, and bad input."""

import json
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from penstock import train
from penstock.commands.audit import audit
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet
from penstock.training.report import read_run
from tests.common.runs import EPOCHS, NUM_VAL, STEPS_PER_EPOCH, by_step, lines, lines_safely, run, start, wait_for


@pytest.fixture(scope="module")
def whole(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an undisturbed run."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    result = run(dataset_dir, run_dir, report=True)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("recipe demo: loading PyTorch and DALI\n"), "before they are imported"
    assert f"{NUM_VAL}/{NUM_VAL}" in result.output
    assert "report" in result.output
    return run_dir


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    steps = lines(whole, "step")
    assert [line["step"] for line in steps] == list(range(STEPS_PER_EPOCH * EPOCHS))
    assert [line["position"] for line in steps[:3]] == [12, 24, 36]
    assert all({"loss", "lr", "images_per_s", "data_wait", "epoch"} <= line.keys() for line in steps)
    assert all(0 <= line["data_wait"] <= 1 for line in steps)
    evals = lines(whole, "eval")
    assert [line["epoch"] for line in evals] == [1, 2]
    assert all(line["num_images"] == NUM_VAL and 0 <= line["top1"] <= line["top5"] <= 1 for line in evals)
    assert len(lines(whole, "epoch")) == EPOCHS
    assert len(lines(whole, "end")) == 1
    for name in ("config.toml", "env.json", "report.png", "checkpoints/last.pt", "checkpoints/best.pt", "tensorboard"):
        assert (whole / name).exists(), name


def test_each_epoch_has_its_own_order(whole: Path) -> None:
    digests = [line["samples"] for line in lines(whole, "step")]
    assert len(set(digests)) == len(digests)


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(
    whole: Path, dataset_dir: Path, tmp_path: Path
) -> None:
    assert run(dataset_dir, tmp_path / "again", "--max-steps", "4").exit_code == 0
    assert run(dataset_dir, tmp_path / "other", "--max-steps", "4", train__seed=1).exit_code == 0
    expected = by_step(whole, "loss")
    assert by_step(tmp_path / "again", "loss") == {step: expected[step] for step in range(4)}
    assert by_step(tmp_path / "other", "loss")[0] != expected[0]


def test_resuming_inside_an_epoch_repeats_the_undisturbed_run(whole: Path, dataset_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert run(dataset_dir, run_dir, "--max-steps", "10").exit_code == 0  # 3 steps into the second epoch
    result = run(dataset_dir, run_dir)
    assert result.exit_code == 0
    assert "resuming from" in result.output
    assert by_step(run_dir, "loss") == by_step(whole, "loss")
    assert by_step(run_dir, "lr") == by_step(whole, "lr")
    assert lines(run_dir, "eval")[-1]["top1"] == lines(whole, "eval")[-1]["top1"]
    weights = [torch.load(d / "checkpoints/last.pt", weights_only=True)["state"]["net"] for d in (run_dir, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_killed_run_resumes_with_the_same_losses(whole: Path, dataset_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(dataset_dir, run_dir, train__checkpoint_every=2)
    wait_for(process, lambda: (run_dir / "metrics.jsonl").exists() and len(lines_safely(run_dir)) >= 4)
    process.kill()
    process.wait()
    assert run(dataset_dir, run_dir, train__checkpoint_every=2).exit_code == 0
    assert by_step(run_dir, "loss") == by_step(whole, "loss")
    assert by_step(run_dir, "samples") == by_step(whole, "samples")


def test_two_ranks_see_the_same_samples_and_validate_each_image_once(
    whole: Path, dataset_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert run(dataset_dir, run_dir, "--max-steps", "3").exit_code == 0
    process = start(dataset_dir, run_dir, ranks=2)  # resumes mid-epoch with another world size
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output
    assert f"{NUM_VAL}/{NUM_VAL}" in output
    assert by_step(run_dir, "samples") == by_step(whole, "samples")
    assert by_step(run_dir, "position") == by_step(whole, "position")


CHOSEN = 7


def test_a_choice_of_validation_images_is_the_same_on_any_number_of_ranks(dataset_dir: Path, tmp_path: Path) -> None:
    limited = ["--max-steps", "2", "--max-val-images", str(CHOSEN)]
    result = run(dataset_dir, tmp_path / "one", *limited)
    assert result.exit_code == 0, result.output
    assert result.output.count(f"on {CHOSEN}/{NUM_VAL} images (--max-val-images)") == 2
    assert f"Stopped by --max-steps after 2 of {STEPS_PER_EPOCH * EPOCHS} steps" in result.output
    process = start(dataset_dir, tmp_path / "two", *limited, ranks=2, train__seed=5)
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output
    both = [json.loads((tmp_path / name / "worst.json").read_text()) for name in ("one", "two")]
    ids = [{row["sample_id"] for row in worst["worst"]} for worst in both]
    assert ids[0] == ids[1]
    assert len(ids[0]) == CHOSEN, "16 worst images are kept, all of these"
    names = {row["sample_id"]: row["source"] for row in both[0]["worst"]}
    assert names == {i: ShardSet.open(dataset_dir).split("val").source_name(i) for i in ids[0]}
    for name in ("one", "two"):
        (line,) = lines(tmp_path / name, "eval")
        assert (line["num_images"], line["split_images"]) == (CHOSEN, NUM_VAL)
    scored = CliRunner().invoke(
        train.main, ["eval", str(tmp_path / "one"), "--max-val-images", str(CHOSEN), "--json", "--device", "cpu"]
    )
    assert scored.exit_code == 0, scored.output
    figures = json.loads(scored.output)
    assert (figures["num_images"], figures["split_images"]) == (CHOSEN, NUM_VAL)
    assert figures["top1"] == lines(tmp_path / "one", "eval")[0]["top1"]
    whole = run(dataset_dir, tmp_path / "one", "--max-steps", "2")  # resumes with all images: they are scored
    assert whole.exit_code == 0, whole.output
    assert [line["num_images"] for line in lines(tmp_path / "one", "eval")] == [CHOSEN, NUM_VAL]
    assert "split_images" not in lines(tmp_path / "one", "eval")[1]


def test_without_validation_the_last_step_is_kept(dataset_dir: Path, tmp_path: Path) -> None:
    """Also where that is no epoch's end."""
    last = STEPS_PER_EPOCH - 1
    result = run(dataset_dir, tmp_path / "run", "--max-steps", str(last), data__val_split="none")
    assert result.exit_code == 0, result.output
    assert (tmp_path / f"run/checkpoints/step-{last:08}.pt").exists()


def test_training_without_a_validation_split(whole: Path, dataset_dir: Path, tmp_path: Path) -> None:
    result = run(dataset_dir, tmp_path / "run", report=True, data__val_split="none")
    assert result.exit_code == 0, result.output
    assert "data.val_split is none: no validation and no best.pt" in result.output
    assert "validation        none (data.val_split is none)" in result.output
    assert by_step(tmp_path / "run", "loss") == by_step(whole, "loss")
    assert not lines(tmp_path / "run", "eval")
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} >= {"last.pt"}
    assert not (tmp_path / "run/checkpoints/best.pt").exists()
    assert (tmp_path / "run/report.html").is_file()
    score = ["eval", str(tmp_path / "run"), "--device", "cpu"]
    refused = CliRunner().invoke(train.main, score)
    assert refused.exit_code == 1
    assert "--split" in refused.output
    assert CliRunner().invoke(train.main, [*score, "--split", "val"]).exit_code == 0


def test_accumulation_sees_the_same_samples(whole: Path, dataset_dir: Path, tmp_path: Path) -> None:
    assert run(dataset_dir, tmp_path / "run", "--max-steps", "3", train__accumulation=3).exit_code == 0
    expected = by_step(whole, "samples")
    assert by_step(tmp_path / "run", "samples") == {step: expected[step] for step in range(3)}


def test_a_resume_may_accumulate_otherwise(whole: Path, dataset_dir: Path, tmp_path: Path) -> None:
    """As it must when eight GPUs become one: the batch of a GPU stays, and the samples of each step."""
    assert run(dataset_dir, tmp_path / "run", "--max-steps", "2").exit_code == 0
    done = run(dataset_dir, tmp_path / "run", "--max-steps", "4", train__accumulation=3)
    assert done.exit_code == 0, done.output
    expected = by_step(whole, "samples")
    assert by_step(tmp_path / "run", "samples") == {step: expected[step] for step in range(4)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint(
    number: signal.Signals, whole: Path, dataset_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(dataset_dir, run_dir, train__epochs=500)
    wait_for(process, lambda: (run_dir / "metrics.jsonl").exists() and len(lines_safely(run_dir)) >= 2)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + number, output
    assert "resumes from the last checkpoint" in output
    assert "Traceback" not in output
    state = torch.load(run_dir / "checkpoints/last.pt", weights_only=True)["state"]["at"]
    assert state["step"] == len(lines(run_dir, "step"))


def test_a_bad_image_costs_a_line(
    dataset_copy: Path, damage: Callable[[ShardSet, str, int, bytes], None], tmp_path: Path
) -> None:
    damage(ShardSet.open(dataset_copy), "train", 41, b"not an image")
    result = run(dataset_copy, tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert result.output.count("quarantined: ") == 1
    quarantined = (tmp_path / "run/quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["sample_id"] for line in quarantined] == [41]
    assert lines(tmp_path / "run", "epoch")[-1]["bad_samples"] == 1
    again = run(dataset_copy, tmp_path / "run", "--resume", "never", "--max-steps", "2")
    assert again.exit_code == 0
    assert (tmp_path / "run.1/quarantine.jsonl").exists(), "the earlier run is moved aside, not overwritten"


def test_a_bad_validation_image_stops_the_run(
    dataset_copy: Path, damage: Callable[[ShardSet, str, int, bytes], None], tmp_path: Path
) -> None:
    damage(ShardSet.open(dataset_copy), "val", 3, b"")
    result = run(dataset_copy, tmp_path / "run", "--max-steps", "1")
    assert result.exit_code == 1
    name = ShardSet.open(dataset_copy).split("val").source_name(3)
    assert name in result.output


def test_a_finished_run_takes_more_epochs(whole: Path, dataset_dir: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(whole, tmp_path / "run"))
    result = run(dataset_dir, run_dir, train__epochs=4)
    assert result.exit_code == 0, result.output
    assert "train.epochs: 2 → 4: continuing at epoch 2 of the new schedule, with learning rate " in result.output
    assert by_step(run_dir, "loss").keys() == set(range(4 * STEPS_PER_EPOCH))
    assert run(dataset_dir, tmp_path / "four", train__epochs=4).exit_code == 0
    rates, new = by_step(run_dir, "lr"), by_step(tmp_path / "four", "lr")
    done = EPOCHS * STEPS_PER_EPOCH
    assert [rates[step] for step in range(done)] == list(by_step(whole, "lr").values())
    assert [rates[step] for step in range(done, 2 * done)] == [new[step] for step in range(done, 2 * done)]
    assert by_step(run_dir, "samples") == by_step(tmp_path / "four", "samples")
    assert not any(epoch.deviation for epoch in audit(run_dir))
    assert "Finished after step 28" in result.output
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    for place in (run_dir, tmp_path / "new"):
        again = run(dataset_dir, place, "--resume", str(run_dir), train__epochs=4)
        assert again.exit_code == 0, again.output
        assert "nothing left to do: step 28 was the last. To train longer, give --set train.epochs=N" in again.output
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()
    trial = run(dataset_dir, run_dir, "--max-val-images", "5", train__epochs=4)
    assert "on 5/19 images" in trial.output
    assert "images/s" not in trial.output  # none was trained on, and the report keeps the rate of those that were
    assert read_run(run_dir).images_per_s > 0
    fewer = run(dataset_dir, run_dir, train__epochs=3)
    assert fewer.exit_code == 1
    assert "4 epochs are done, but train.epochs: 4 → 3. Give more epochs" in fewer.output


def test_a_checkpoint_of_another_recipe_or_dataset_is_refused(whole: Path, dataset_dir: Path, tmp_path: Path) -> None:
    other_recipe = run(dataset_dir, tmp_path / "a", "--resume", str(whole), optimizer__lr=0.01)
    assert other_recipe.exit_code == 1
    assert "optimizer.lr" in other_recipe.output
    broken = tmp_path / "broken.pt"
    broken.write_bytes((whole / "checkpoints/last.pt").read_bytes()[:1000])
    truncated = run(dataset_dir, tmp_path / "b", "--resume", str(broken))
    assert truncated.exit_code == 1
    assert str(broken) in truncated.output


OTHERS = {
    "3 classes, not the 2 of {}": lambda tree: (
        shutil.rmtree(tree / "train/class2") or shutil.rmtree(tree / "val/class2")
    ),
    "other classes than {}, for example class1": lambda tree: [
        (tree / s / "class1").rename(tree / s / "class1b") for s in ("train", "val")
    ],
    "90 images in train, not the 89 of {}": lambda tree: next((tree / "train/class0").iterdir()).unlink(),
    "the same classes and numbers of images as {}, but other shards": lambda tree: next(
        (tree / "train/class0").iterdir()
    ).rename(tree / "train/class0/other.jpg"),
}


@pytest.mark.parametrize("expected", OTHERS)
def test_a_checkpoint_of_another_dataset_is_refused_with_the_difference(
    expected: str, whole: Path, image_tree: Path, tmp_path: Path
) -> None:
    tree, packed = Path(shutil.copytree(image_tree, tmp_path / "tree")), tmp_path / "packed"
    OTHERS[expected](tree)
    with ThreadPoolExecutor(1) as executor:
        pack(tree, packed, PackOptions(samples_per_shard=25), executor=executor)
    result = run(packed, tmp_path / "run", "--resume", str(whole))
    assert result.exit_code == 1
    assert f"made with another dataset ({expected.format(packed)})" in result.output


BAD_INPUT = {
    "no dataset": (["--data", "nowhere"], "nowhere"),
    "no recipe": (["--recipe", "rn51"], "rn50-90ep"),
    "unknown key": (["--set", "optimizer.momentun=0.9"], "optimizer.momentum"),
    "ill-typed": (["--set", "train.epochs=many"], "train.epochs"),
    "out of range": (["--set", "augment.hue=2"], "between 0 and 0.5"),
    "unknown network": (["--set", "model.name=resnet51"], "resnet50"),
    "batch too large": (["--set", "train.global_batch_size=4096"], "train.global_batch_size"),
    "does not divide": (["--set", "train.accumulation=5"], "train.accumulation"),
    "no such split": (["--set", "data.val_split=test"], "--split train=0.9,val=0.1"),
    "no test split": (["--set", "data.test_split=test"], "no split 'test'; it has train, val"),
    "no checkpoint": (["--resume", "nowhere.pt"], "nowhere.pt"),
    "no gpu": (["--device", "cuda"], "no GPU"),
    "one size only": (["--set", "model.name=vit_b_32"], "vit_b_32 accepts only images of 224 px"),
    "warm-up too long": (["--set", "schedule.warmup_epochs=9"], "schedule.warmup_epochs"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_line(case: str, dataset_dir: Path, tmp_path: Path) -> None:
    if case == "no gpu" and torch.cuda.is_available():
        pytest.skip("there is one")
    more, expected = BAD_INPUT[case]
    result = run(dataset_dir, tmp_path / "run", *more)
    assert result.exit_code != 0
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    message = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(message) == 1, result.output
    assert expected in message[0]
    if case in ("no dataset", "no such split", "no test split"):
        assert not (tmp_path / "run").exists(), "known before anything is made"


@pytest.mark.parametrize("words", [["predict", "run", "images"], ["export", "run", "net.pt"], ["replay", "step.pt"]])
def test_what_runs_in_one_process_refuses_torchrun(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(train.main, words)
    assert result.exit_code == 1
    assert result.output == f"Error: {words[0]} runs in one process; start it without torchrun\n"
