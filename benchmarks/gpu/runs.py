"""The stages that run whole programs: train.py (stopped and resumed, every recipe, CIFAR-10), explain, and pytest."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
import torch

from penstock.benchmarks import explain
from penstock.benchmarks.gpu.data import NUM_CLASSES, ROOT, originals, small_set
from penstock.benchmarks.gpu.run import FORK
from penstock.benchmarks.gpu.stage import Job
from penstock.commands.audit import audit
from penstock.model.networks import build_model
from penstock.recipes import FOLDER, Recipe, config, recipe_file
from penstock.training import checkpoint
from penstock.training.metrics import METRICS_FILE, read_metrics

TESTS = ROOT / "tests" / "gpu"
RUN_BATCH, RUN_EPOCHS = 32, 2
POLL_S = 0.002


def arguments(job: Job, recipe: str, data: Path, run_dir: Path, sets: Sequence[str], *more: str) -> list[str]:
    """Return arguments for train.py."""
    common = ["--data", str(data), "--recipe", recipe, "--device", job.device.type, "--no-machine-config"]
    return [*common, "--run-dir", str(run_dir), *more, *of_sets(*job.sets, *sets)]


def of_sets(*sets: str) -> list[str]:
    return [part for value in sets for part in ("--set", value)]


def train(options: list[str]) -> None:
    """Run `python train.py OPTIONS` in this process, which has torch imported. Raises SystemExit if it fails."""
    sys.argv = [str(ROOT / "train.py"), *options]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def resumed(job: Job, loader: str) -> None:
    """Train the demo's network three times: undisturbed, killed mid-epoch and resumed, stopped by SIGTERM and resumed.

    All three must see exactly the planned samples and end with bit-identical weights.
    """
    num_steps = job.scale.run_images // RUN_BATCH  # of an epoch
    sets = (f"data.loader={loader}", f"train.epochs={RUN_EPOCHS}", "schedule.warmup_epochs=1",
            f"train.global_batch_size={RUN_BATCH}", f"train.eval_every={RUN_EPOCHS}", "train.log_every=2",
            f"train.checkpoint_every={max(2, num_steps // 3)}")  # fmt: skip
    dataset, folder = small_set(job, job.scale.run_images).root, job.work / f"run-{loader}"
    for name, number in {"undisturbed": 0, "killed": signal.SIGKILL, "SIGTERM": signal.SIGTERM}.items():
        with job.report.attempt(name):
            options = arguments(job, "demo", dataset, folder / name, sets, "--deterministic")
            if number:
                run(options, folder / name, num_steps // 2, number)
            at = len(lines(folder / name, "step"))
            run(options, folder / name)
            epochs, apart = audit(folder / name), difference(folder / name, folder / "undisturbed")
            wrong = next((f"epoch {one.epoch}: {one.deviation}" for one in epochs if one.deviation), "")
            text = wrong or f"{len(epochs)} epochs, {sum(one.samples for one in epochs):,} samples as planned"
            job.report.row(f"{name} at step {at}, resumed" if number else name, apart, "weights apart at most", text,
                           right=not wrong and apart == 0)  # fmt: skip


def run(options: list[str], run_dir: Path, num_steps: int = 0, number: int = 0) -> None:
    """Run train.py in a process of the stage's group, with its output in the stage's log.

    If `number` is given, send that signal once the metrics have `num_steps` steps of the second epoch. Raises
    RuntimeError if train.py ends in any other way.
    """
    process = FORK.Process(target=train, args=(options,))
    process.start()
    while number and process.is_alive():
        if sum(line["epoch"] == 1 for line in lines(run_dir, "step")) >= num_steps:
            os.kill(process.pid or 0, number)
            break
        time.sleep(POLL_S)
    process.join()
    if process.exitcode not in ((-number, 128 + number) if number else (0,)):
        raise RuntimeError(f"train.py ended with exit code {process.exitcode}. The log has its last lines.")


def lines(run_dir: Path, kind: str) -> list[dict[str, float]]:
    """Return the lines of one kind in metrics.jsonl, none before the file exists. Callers use only their numbers."""
    if not (run_dir / METRICS_FILE).exists():
        return []
    return cast(list[dict[str, float]], [line for line in read_metrics(run_dir) if line["kind"] == kind])


def difference(run_dir: Path, other: Path) -> float:
    """Return the largest difference between two runs' last weights and statistics, 0 if they are bit-identical.

    Uses NumPy because the programs are forked from this process. If torch has computed on several threads before a
    fork, the child waits forever for threads that it does not have (GNU OpenMP).
    """
    ours, theirs = (checkpoint.load(checkpoint.last_path(folder))["net"] for folder in (run_dir, other))
    return max(float(np.abs(ours[name].numpy() - theirs[name].numpy()).max()) for name in ours | theirs)


def recipes(job: Job) -> None:
    """Run every recipe for some steps on synthetic batches, including validation and report.

    All run in this process, one after the other, since importing torch for each would take longer than the steps.
    """
    dataset, num_steps = small_set(job, job.scale.run_images).root, job.scale.recipe_steps
    for name in job.scale.recipes or sorted(file.stem for file in FOLDER.glob("*.toml")):
        sets, run_dir = ("data.loader=synthetic", "model.compile=false", *job.scale.recipe_sets), job.work / name
        with job.report.attempt(name):
            sets += pretrained(job, name, sets)
            train(arguments(job, name, dataset, run_dir, sets, "--max-steps", str(num_steps)))
            (end,), steps = lines(run_dir, "end"), lines(run_dir, "step")
            loss = steps[-1]["loss"] if steps else float("nan")
            job.report.row(name, end["seconds"], "s", f"{len(steps)} steps, loss {loss:.3f}",
                           right=end["step"] == num_steps == len(steps) and loss == loss)  # fmt: skip


def pretrained(job: Job, name: str, sets: Sequence[str]) -> tuple[str, ...]:
    """Return the setting that replaces a recipe's downloaded weights by a file of fresh ones.

    The machine may not be able to download.
    """
    recipe = config.load_config(Recipe, recipe_file(name), (*job.sets, *sets))
    if not recipe.model.pretrained:
        return ()
    file = job.work / f"{name}.pt"
    torch.save(build_model(recipe.model, NUM_CLASSES, recipe.data.image_size).state_dict(), file)
    return (f"model.pretrained={file}",)


def cifar(job: Job, recipe: str) -> None:
    """Train a CIFAR-10 recipe to its end with train.py. The log shows each epoch as it ends.

    A rehearsal trains briefly on a small set.
    """
    dataset, run_dir = job.cifar or small_set(job, 256).root, job.work / f"to-the-end-{recipe}"
    train(arguments(job, recipe, dataset, run_dir, job.scale.cifar_sets))
    for line in lines(run_dir, "eval"):
        job.report.row(f"epoch {line['epoch']}", line["top1"], "top-1", details=line)
    (end,) = lines(run_dir, "end")
    job.report.row("top-1", max(end["top1"], end.get("ema_top1", 0.0)), text=f"in {end['seconds']:.0f} s")
    job.report.row("in training", end["images_per_s"], "images/s", f"waiting for data {end['data_wait']:.1%}")


def accumulated(job: Job) -> None:
    """Train ResNet-50's recipe on one GPU with the batch of eight, and with that of one, on synthetic batches.

    Reports images/s and the most memory that torch allocated, each in a process of its own.
    """
    batch_size, world_size = job.scale.batch_size, 8
    dataset = small_set(job, max(NUM_CLASSES, 4 * world_size * batch_size), NUM_CLASSES).root
    for factor in (world_size, 1):
        with job.report.attempt(name := f"train.accumulation={factor}"):
            sets = ("data.loader=synthetic", name, f"train.global_batch_size={factor * batch_size}",
                    "train.log_every=1", "train.eval_every=90", *job.scale.sets)  # fmt: skip
            run(arguments(job, "rn50-90ep", dataset, job.work / name, sets, "--max-steps", "20"), job.work / name)
            steps = lines(job.work / name, "step")[4:]  # the first ones compile
            memory = steps[-1].get("gpu_memory_gb")
            job.report.row(name, [step["images_per_s"] for step in steps], "images/s",
                           f"{memory:.1f} GB" if memory else "", details={"memory_gb": memory})  # fmt: skip


def explained(job: Job) -> None:
    """Run `bench.py explain`: report the bottleneck, and the model's predictions compared with the measured rates."""
    result = job.work / "explain.json"
    options = [
        "--data",
        originals(job).root,
        "--recipe",
        "rn50-90ep",
        "--batch-size",
        job.scale.batch_size,
        "--device",
        job.device.type,
        "--no-machine-config",
        "--seconds",
        job.scale.seconds,
        "--repeats",
        3,
        "--json",
        result,
    ]
    explain.command.main([*map(str, options), *of_sets(*job.sets, *job.scale.sets)], standalone_mode=False)
    written = json.loads(result.read_text(encoding="utf-8"))
    job.report.row("bottleneck", text=written["explain"]["bottleneck"])
    for name, predicted in written["explain"]["predicted"].items():
        seen = median(written["programs"][name]["images_per_s"])
        job.report.row(f"{name}: model / measured", predicted / seen, "times", f"{seen:,.0f} images/s")


def tests(job: Job) -> None:
    """Run tests/gpu with pytest, each file in its own process, so a crash affects only that file."""
    for file in sorted(TESTS.glob("test_*.py")):
        command = [sys.executable, "-m", "pytest", "-v", "-rfE", "-p", "no:cacheprovider", "--color=no"]
        command += ["-o", "addopts=--import-mode=importlib", str(file)]  # without xdist, which may be missing
        printed = [""]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
                              errors="backslashreplace") as done:  # fmt: skip
            for line in done.stdout or ():  # into the stage's log too, as it comes
                print(line, end="", flush=True)
                printed += [line.strip()] if line.strip() else []
        for line in printed:
            if line.startswith(("FAILED", "ERROR")):
                job.report.row(line[:100], right=False)
        if done.returncode < 0:
            last = next((line for line in reversed(printed) if "::" in line), "")  # -v names a test before it runs
            job.report.row(file.name, text=last[-80:], verdict=f"failed ({signal.Signals(-done.returncode).name})")
        else:
            passed = re.search(r"\d+ passed", printed[-1])
            job.report.row(file.name, text=printed[-1].strip("= "), right=done.returncode == 0 and bool(passed))
