"""Stages of the part `check` that run programs: train.py stopped and resumed, every recipe, tests/gpu."""

import re
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu import data, runs
from benchmarks.gpu.report import Skipped
from benchmarks.gpu.stage import Job
from recipes import FOLDER

ROOT = Path(__file__).parents[2]
RUN_BATCH = 32
TESTS = ROOT / "tests" / "gpu"


def run(job: Job) -> None:
    """The demo's network on made-up batches: one run undisturbed, one killed in mid-epoch and resumed, one stopped by
    SIGTERM and resumed. All see the same samples and end with the same weights, to the bit."""
    dataset = small_set(job)
    stop_and_resume(job, dataset, "synthetic", "demo", ())


def small_set(job: Job) -> Path:
    num_train = job.scale.run_images
    return data.packed(job.work, "444", num_train=num_train, num_val=64, num_classes=10, side=40).root


def stop_and_resume(job: Job, dataset: Path, loader: str, recipe: str, sets: tuple[str, ...]) -> None:
    """Rows of the three runs above, with any loader."""
    folder, report = job.work / f"run-{loader}", job.report
    steps_per_epoch = job.scale.run_images // RUN_BATCH
    values = (f"data.loader={loader}", f"train.epochs={job.scale.run_epochs}", "schedule.warmup_epochs=1",
              f"train.global_batch_size={RUN_BATCH}", f"train.eval_every={job.scale.run_epochs}",
              "train.log_every=2", f"train.checkpoint_every={max(2, steps_per_epoch // 3)}", *sets)  # fmt: skip
    common = ["--data", str(dataset), "--recipe", recipe, "--device", job.device.type, "--deterministic"]
    common += ["--no-machine-config", *(part for value in values for part in ("--set", value))]

    def arguments(name: str) -> list[str]:
        return [*common, "--run-dir", str(folder / name)]

    folder.mkdir()
    report.settings(arguments=common)
    whole = folder / "undisturbed"
    runs.to_end(job, arguments("undisturbed"), folder / "undisturbed.log")
    (end,) = runs.lines(whole, "end")
    report.row("undisturbed", end["images_per_s"], "images/s", text=f"top-1 {end['top1']:.3f}, {end['step']} steps",
               right=end["step"] == job.scale.run_epochs * steps_per_epoch)  # fmt: skip
    for name, number in (("killed", signal.SIGKILL), ("SIGTERM", signal.SIGTERM)):
        with report.attempt(f"{name} and resumed"):
            at = runs.stopped(
                job, arguments(name), folder / f"{name}.log", folder / name, number, steps_per_epoch // 2, 1
            )
            runs.to_end(job, arguments(name), folder / f"{name}.log")
            same = runs.digests(folder / name) == runs.digests(whole)
            apart = runs.difference(folder / name, whole)
            report.row(
                f"{name} at step {at}, resumed",
                apart,
                "largest difference of the weights",
                at_most=0.0,
                right=same and apart == 0,
                text=f"samples {'the same' if same else 'DIFFER'}",
            )


def recipes(job: Job) -> None:
    """Every recipe for some steps on made-up batches, validation and report included; one of them compiled.

    In this process, one after the other: an import of torch for each would take longer than the steps."""
    import train

    dataset = small_set(job)
    files = sorted(FOLDER.glob("*.toml"))
    for file in (file for file in files if not job.scale.recipes or file.stem in job.scale.recipes):
        compiled = file.stem == job.scale.compiled_recipe
        sets = ["data.loader=synthetic", f"model.compile={str(compiled).lower()}", *job.scale.recipe_sets]
        run_dir = job.work / f"recipe-{file.stem}"
        options = ["--data", str(dataset), "--run-dir", str(run_dir), "--device", job.device.type]
        options += ["--max-steps", str(job.scale.recipe_steps), "--no-machine-config"]
        options += [part for value in sets for part in ("--set", value)]
        with job.report.attempt(file.stem):
            try:
                train.main(["--recipe", file.stem, *options], standalone_mode=False)
            except SystemExit as ended:
                raise RuntimeError(f"train.py ended with {ended.code}; its last lines are in the log") from None
            (end,) = runs.lines(run_dir, "end")
            steps = runs.lines(run_dir, "step")
            right = end["step"] == job.scale.recipe_steps == len(steps)
            loss = f"loss {steps[-1]['loss']:.3f}" if steps and steps[-1]["loss"] is not None else "loss not finite"
            job.report.row(file.stem, end["seconds"], "s", right=right and "not" not in loss,
                           text=f"{len(steps)} steps, {loss}{', compiled' * compiled}")  # fmt: skip


def tests(job: Job) -> None:
    """tests/gpu, by pytest, a file in a process of its own: one that crashes costs itself."""
    skipped = []
    for file in sorted(TESTS.glob("test_*.py")):
        command = [sys.executable, "-m", "pytest", "-v", "-rfE", "-p", "no:cacheprovider", "--color=no", str(file)]
        log = job.work / f"{file.stem}.log"
        with open(log, "w", encoding="utf-8") as stream:
            done = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                    encoding="utf-8", errors="backslashreplace")  # fmt: skip
            assert done.stdout
            for line in done.stdout:  # into the stage's log too, as it comes
                stream.write(line)
                print(line, end="", flush=True)
        code = done.wait()
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        outcome = lines[-1].strip("= ") if lines else "no output"
        for line in lines:
            if line.startswith(("FAILED", "ERROR")):
                job.report.row(line[:100], right=False)
        if code == 0 and not re.search(r"\d+ passed", outcome):
            skipped.append(outcome)
        elif code < 0:
            last = next((line for line in reversed(lines) if "::" in line), outcome)  # -v names a test before it runs
            job.report.row(file.name, judged=f"failed ({signal.Signals(-code).name})", text=last[-80:])
        else:
            job.report.row(file.name, text=outcome, right=code == 0)
    if skipped and not job.report.result["figures"]:
        raise Skipped(skipped[0])
