"""Stages of the part `train`: the loader and the step together."""

import json
from collections.abc import Callable, Iterator
from statistics import median

import torch

from benchmarks import explain, programs
from benchmarks.gpu import check, compute, data, example, loading, runs
from benchmarks.gpu.expected import CIFAR_FAST_TOP1, CIFAR_TOP1, OF_SYNTHETIC, OVER_DALI_EXAMPLE, TOLERANCE, step_goal
from benchmarks.gpu.report import Skipped
from benchmarks.gpu.stage import Job
from benchmarks.measure import Sample, in_turn, ratio
from benchmarks.programs import BatchProgram
from commands.audit import audit
from pipeline.batch import Batch
from pipeline.build import threads_per_rank
from recipes import Recipe
from shards.format import ShardSet
from training import environment
from training.learner import build_learner
from training.step import train_step


def end_to_end(job: Job) -> None:
    """As the recipe is: on a GPU compiled, its step a CUDA graph."""
    beside_made_up(job)


def without_graphs(job: Job) -> None:
    if not job.on_gpu:
        raise Skipped("needs a GPU (a CPU has no CUDA graphs)")
    beside_made_up(job, "model.compile=true", "model.compile_mode=default")


def decoded_on_cpu(job: Job) -> None:
    """Decoded, cropped and flipped by the CPU's cores."""
    beside_made_up(job, "data.gpu_decode=off")


def beside_made_up(job: Job, *sets: str) -> None:
    """`bench.py train` with DALI beside itself with made-up batches, in turn."""
    environment.choose_kernels()
    recipe, dataset, size = job.resnet(*sets), loading.originals(job), job.scale.batch_sizes[0]
    built = [programs.build("train", name, recipe, dataset, job.world, size) for name in ("dali", "synthetic")]
    samples = timed(job, built)
    rates = {name: [sample.images_per_s for sample in taken] for name, taken in samples.items()}
    goal = step_goal("fused", job.bounds)
    job.report.row("with DALI", rates["dali"], "images/s", at_least=goal and TOLERANCE * goal, batch_size=size)
    job.report.row("made-up batches", rates["synthetic"], "images/s")
    job.report.row("waiting for data", [sample.data_wait for sample in samples["dali"]], "of the time", at_most=0.01)
    for name, taken in samples.items():  # of a small one `throughput.launch_warnings` says more
        job.report.row(f"{name}: the CPU ahead of the GPU", [sample.ahead for sample in taken], "steps")
    found = ratio(rates["dali"], rates["synthetic"])
    job.report.row("DALI / made up", found.median, "times", at_least=OF_SYNTHETIC,
                   text=f"[{found.min:.3f}–{found.max:.3f}]", **found._asdict())  # fmt: skip


def by_threads(job: Job) -> None:
    """Training with DALI by its threads, in turn: they share the CPU with the one that launches the step's kernels."""
    environment.choose_kernels()
    dataset, size, most = loading.originals(job), job.scale.batch_sizes[0], threads_per_rank(0, 1)
    built = []
    for count in sorted({max(1, most // share) for share in (1, 2, 4, 8)}):
        program = programs.build("train", "dali", job.resnet(f"data.threads={count}"), dataset, job.world, size)
        program.name = f"{count} threads"
        built.append(program)
    for name, taken in timed(job, built).items():
        wait, ahead = (median(values) for values in ((one.data_wait for one in taken), (one.ahead for one in taken)))
        job.report.row(name, [one.images_per_s for one in taken], "images/s",
                       text=f"waiting for data {wait:.1%}, the CPU {ahead:.2f} steps ahead")  # fmt: skip


def timed(job: Job, built: list[BatchProgram]) -> dict[str, list[Sample]]:
    try:
        return in_turn(built, job.scale.seconds, job.scale.repeats)
    finally:
        for program in built:
            program.close()


def explained(job: Job) -> None:
    """`bench.py explain`: what it calls the limit of training, and what its model says beside what was measured."""
    dataset, size, result = loading.originals(job), job.scale.batch_sizes[0], job.work / "explain.json"
    sides = [f"data.{name}={job.scale.image_size}" for name in ("image_size", "val_image_size", "val_resize_size")]
    sets = [*job.sets, f"model.name={job.scale.network}", *sides]
    arguments = ["--data", str(dataset.root), "--recipe", "rn50-90ep", "--batch-size", str(size)]
    arguments += ["--device", job.device.type, "--no-machine-config", "--seconds", str(job.scale.seconds)]
    arguments += ["--repeats", "3", "--json", str(result), *(part for one in sets for part in ("--set", one))]
    job.report.settings(arguments=arguments)
    explain.command.main(arguments, standalone_mode=False)
    written = json.loads(result.read_text(encoding="utf-8"))
    found, measured = written["explain"], written["programs"]
    job.report.row("the limit", text=found["bottleneck"])
    for name, predicted in found["predicted"].items():
        seen = median(measured[name]["images_per_s"])
        job.report.row(f"{name}: model / measured", predicted / seen, "times", text=f"{seen:,.0f} images/s")
    for number, change in enumerate(found["advice"], 1):
        job.report.row(f"advice {number}", change["expected"], "times", text=change["option"])


def dali_example(job: Job) -> None:
    beside_the_example(job, whole=False)


def dali_whole(job: Job) -> None:
    beside_the_example(job, whole=True)


def beside_the_example(job: Job, whole: bool) -> None:
    """This project's graph beside the example's, in turn: batches thrown away; and training, ours as the recipe is,
    the example as it trains with `--fp16-mode`: eager, in float16, here channels-last too."""
    environment.choose_kernels()
    dataset, size = loading.originals(job), job.scale.batch_sizes[0]
    recipe, threads = job.resnet(), threads_per_rank(0, 1)
    half = "fp16" if job.on_gpu else "fp32"
    eager = job.resnet("model.compile=false", f"train.precision={half}")
    split = dataset.split("train")
    times = -(-programs.MIN_BATCHES * size // len(split))  # as ours: at an epoch's end its iterator starts anew
    paths, labels = example.write_files(split, job.work / "files")
    paths, labels = times * paths, times * labels

    def theirs() -> Iterator[Batch]:
        return example.batches(
            paths, labels, recipe.data, batch_size=size, threads=threads, device=job.device, whole=whole
        )

    for kind, work, what in (
        ("loader", next, "batches alone"), ("train", step_of(eager, dataset, job), "training"),
    ):  # fmt: skip
        ours = programs.build(kind, "dali", recipe, dataset, job.world, size)  # type: ignore[arg-type]
        other = BatchProgram("example", theirs(), work, job.device)
        samples = timed(job, [ours, other])
        rates = {name: [sample.images_per_s for sample in taken] for name, taken in samples.items()}
        job.report.row(f"ours, {what}", rates["dali"], "images/s")
        job.report.row(f"DALI's example, {what}", rates["example"], "images/s")
        found = ratio(rates["dali"], rates["example"])
        job.report.row(f"ours / DALI's example, {what}", found.median, "times", at_least=OVER_DALI_EXAMPLE,
                       text=f"[{found.min:.3f}–{found.max:.3f}]", **found._asdict())  # fmt: skip
        del ours, other
        compute.free()


def step_of(recipe: Recipe, dataset: ShardSet, job: Job) -> Callable[[Iterator[Batch]], object]:
    """The project's step, on whatever batches come; those of the example are made channels-last by it."""
    learner = build_learner(recipe, len(dataset.classes), job.world)
    learner.net.train()

    def channels_last(batches: Iterator[Batch]) -> Iterator[Batch]:
        images, labels, ids = next(batches)
        yield Batch(images.to(memory_format=torch.channels_last), labels, ids)

    return lambda batches: train_step(learner, channels_last(batches), recipe.train)


def cifar(job: Job) -> None:
    to_the_end(job, "cifar10-rn18", CIFAR_TOP1)


def cifar_fast(job: Job) -> None:
    """The recipe for CPUs, which has the smallest network, on a GPU."""
    to_the_end(job, "cifar10-cpu", CIFAR_FAST_TOP1)


def to_the_end(job: Job, recipe: str, top1: float) -> None:
    """A recipe for CIFAR-10 to its end, by train.py; in a rehearsal a short one on a small set."""
    dataset = job.cifar or data.packed(job.work, "444", num_train=256, num_val=64, num_classes=10, side=32).root
    run_dir, log = job.work / recipe, job.work / f"{recipe}.log"
    arguments = ["--data", str(dataset), "--recipe", recipe, "--run-dir", str(run_dir)]
    arguments += ["--device", job.device.type, "--no-machine-config"]
    arguments += [part for value in job.scale.cifar_sets for part in ("--set", value)]
    job.report.settings(arguments=arguments)
    for line in runs.evaluated(job, arguments, log, run_dir):
        ema = line.get("ema_top1")
        job.report.row(f"epoch {line['epoch']}", line["top1"], "top-1", shown=False, ema_top1=ema)
    (end,) = runs.lines(run_dir, "end")
    job.report.row("top-1", max(end["top1"], end.get("ema_top1", 0.0)), "", at_least=top1)
    job.report.row("time", end["seconds"], "s", at_most=600.0)
    job.report.row("in training", end["images_per_s"], "images/s", text=f"waiting for data {end['data_wait']:.1%}")


def resume(job: Job) -> None:
    """As `check run`, on batches that DALI makes: killed, stopped, resumed; and the audit of each run."""
    dataset = check.small_set(job)
    check.stop_and_resume(job, dataset, "dali", "demo", ())
    for name in ("undisturbed", "killed", "SIGTERM"):
        epochs = audit(job.work / "run-dali" / name)
        wrong = next((f"epoch {epoch.epoch}: {epoch.deviation}" for epoch in epochs if epoch.deviation), "")
        text = wrong or f"{len(epochs)} epochs, {sum(epoch.samples for epoch in epochs):,} samples as planned"
        job.report.row(f"audit of {name}", text=text, right=not wrong)
