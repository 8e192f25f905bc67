"""The stages that run whole programs: train.py stopped and resumed, every recipe, CIFAR-10; explain; pytest."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median

from benchmarks import explain
from benchmarks.gpu.data import originals, packed, small_set
from benchmarks.gpu.run import FORK
from benchmarks.gpu.stage import Job
from commands.audit import audit
from recipes import FOLDER
from training import checkpoint
from training.metrics import METRICS_FILE, read_metrics

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "gpu"
RUN_BATCH, RUN_EPOCHS = 32, 2
POLL_S = 0.002


def arguments(job: Job, recipe: str, data: Path, run_dir: Path, sets: Sequence[str], *more: str) -> list[str]:
    """Of train.py."""
    common = ["--data", str(data), "--recipe", recipe, "--device", job.device.type, "--no-machine-config"]
    return [*common, "--run-dir", str(run_dir), *more, *(part for value in sets for part in ("--set", value))]


def train(options: list[str], standalone: bool = False) -> None:
    """train.py in this process. standalone: ends it."""
    from commands import command_line

    command_line.main(options, prog_name="train.py", standalone_mode=standalone)


def started(options: list[str]) -> BaseProcess:
    """train.py in a process of the stage's group, whose output is in the stage's log."""
    process = FORK.Process(target=train, args=(options, True))
    process.start()
    return process


def ended(process: BaseProcess, *codes: int) -> None:
    """Wait for the end. Raises RuntimeError where the exit code is none of `codes`."""
    process.join()
    if process.exitcode not in codes:
        raise RuntimeError(f"train.py ended with {process.exitcode}; its last lines are in the log")


def resumed(job: Job, loader: str) -> None:
    """The demo's network: one run undisturbed, one killed in mid-epoch and resumed, one stopped by SIGTERM and resumed.
    All see the samples that the plan says and end with the same weights, to the bit."""
    num_steps = job.scale.run_images // RUN_BATCH  # of an epoch
    sets = (f"data.loader={loader}", f"train.epochs={RUN_EPOCHS}", "schedule.warmup_epochs=1",
            f"train.global_batch_size={RUN_BATCH}", f"train.eval_every={RUN_EPOCHS}", "train.log_every=2",
            f"train.checkpoint_every={max(2, num_steps // 3)}")  # fmt: skip
    job.report.settings(loader=loader, set_of_runs=sets)
    dataset, folder = small_set(job).root, job.work / f"run-{loader}"
    for name, number in (("undisturbed", None), ("killed", signal.SIGKILL), ("SIGTERM", signal.SIGTERM)):
        with job.report.attempt(name):
            options = arguments(job, "demo", dataset, folder / name, sets, "--deterministic")
            at = stopped(options, folder / name, number, num_steps // 2) if number else 0
            ended(started(options), 0)
            epochs, apart = audit(folder / name), difference(folder / name, folder / "undisturbed")
            wrong = next((f"epoch {one.epoch}: {one.deviation}" for one in epochs if one.deviation), "")
            text = wrong or f"{len(epochs)} epochs, {sum(one.samples for one in epochs):,} samples as planned"
            job.report.row(f"{name} at step {at}, resumed" if number else name, apart, "weights apart at most", text,
                           right=not wrong and apart == 0)  # fmt: skip


def stopped(options: list[str], run_dir: Path, number: signal.Signals, after: int) -> int:
    """Run until the second epoch has `after` steps in the metrics, send a signal, and wait for the end. Returns how
    many steps were there. Raises RuntimeError where the run ended before."""
    process = started(options)
    while process.is_alive():
        if sum(line["epoch"] == 1 for line in lines(run_dir, "step")) >= after:
            assert process.pid is not None
            os.kill(process.pid, number)
            break
        time.sleep(POLL_S)
    ended(process, -number, 128 + number)
    return len(lines(run_dir, "step"))


def lines(run_dir: Path, kind: str) -> list[dict[str, float]]:
    """The lines of metrics.jsonl of a kind, none before it is there; of the fields those that are numbers are asked."""
    return [one for one in read_metrics(run_dir) if one["kind"] == kind] if (run_dir / METRICS_FILE).exists() else []


def difference(run_dir: Path, other: Path) -> float:
    """The largest difference between two runs' last weights and statistics; 0 where they agree to the bit."""
    ours, theirs = (checkpoint.load(checkpoint.last_path(folder))["net"] for folder in (run_dir, other))
    if ours.keys() != theirs.keys():
        return float("inf")
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def recipes(job: Job) -> None:
    """Every recipe for some steps on made-up batches, validation and report included.

    In this process, one after the other: an import of torch for each would take longer than the steps."""
    dataset, num_steps = small_set(job).root, job.scale.recipe_steps
    for name in job.scale.recipes or sorted(file.stem for file in FOLDER.glob("*.toml")):
        sets = ("data.loader=synthetic", "model.compile=false", *job.scale.recipe_sets)
        run_dir = job.work / f"recipe-{name}"
        with job.report.attempt(name):
            train(arguments(job, name, dataset, run_dir, sets, "--max-steps", str(num_steps)))
            (end,), steps = lines(run_dir, "end"), lines(run_dir, "step")
            loss = steps[-1]["loss"] if steps else float("nan")
            job.report.row(name, end["seconds"], "s", f"{len(steps)} steps, loss {loss:.3f}",
                           right=end["step"] == num_steps == len(steps) and loss == loss)  # fmt: skip


def cifar(job: Job, recipe: str) -> None:
    """A recipe for CIFAR-10 to its end, by train.py; in a rehearsal a short one on a small set."""
    dataset = job.cifar or packed(job, "444", num_train=256, num_classes=10, side=32).root
    run_dir, seen, running = job.work / recipe, 0, True
    process = started(arguments(job, recipe, dataset, run_dir, job.scale.cifar_sets))
    while running:  # an epoch's row as soon as it is there
        running = process.is_alive()
        for line in lines(run_dir, "eval")[seen:]:
            job.report.row(f"epoch {line['epoch']}", line["top1"], "top-1", details=line)
            seen += 1
        process.join(0.5)
    ended(process, 0)
    (end,) = lines(run_dir, "end")
    job.report.row("top-1", max(end["top1"], end.get("ema_top1", 0.0)), "", f"in {end['seconds']:.0f} s")
    job.report.row("in training", end["images_per_s"], "images/s", f"waiting for data {end['data_wait']:.1%}")


def explained(job: Job) -> None:
    """`bench.py explain`: what it calls the limit of training, and what its model says beside what was measured."""
    result, sets = job.work / "explain.json", (*job.sets, *job.scale.sets)
    options = ["--data", str(originals(job).root), "--recipe", "rn50-90ep", "--batch-size", str(job.scale.batch_size),
               "--device", job.device.type, "--no-machine-config", "--seconds", str(job.scale.seconds), "--repeats",
               "3", "--json", str(result), *(part for one in sets for part in ("--set", one))]  # fmt: skip
    explain.command.main(options, standalone_mode=False)
    written = json.loads(result.read_text(encoding="utf-8"))
    found = written["explain"]
    job.report.row("the limit", text=found["bottleneck"])
    for name, predicted in found["predicted"].items():
        seen = median(written["programs"][name]["images_per_s"])
        job.report.row(f"{name}: model / measured", predicted / seen, "times", f"{seen:,.0f} images/s")


def tests(job: Job) -> None:
    """tests/gpu, by pytest, a file in a process of its own: one that crashes costs itself."""
    for file in sorted(TESTS.glob("test_*.py")):
        command = [sys.executable, "-m", "pytest", "-v", "-rfE", "-p", "no:cacheprovider", "--color=no", str(file)]
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
