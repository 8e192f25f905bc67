"""The stages that time programs alternately: settings of one recipe, or the project's step and a bare loop.

Each of the project's programs comes from `benchmarks.programs`: a loader alone, a step on synthetic batches, or both.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from statistics import median

import torch
import torchvision
from torch.nn.functional import cross_entropy

from penstock.benchmarks import programs
from penstock.benchmarks.gpu.data import NUM_CLASSES, originals, small_set
from penstock.benchmarks.gpu.stage import Job
from penstock.benchmarks.measure import in_turn, ratio
from penstock.benchmarks.programs import BatchProgram, Kind
from penstock.pipeline.batch import Batch
from penstock.shards.format import ShardSet
from penstock.training import environment


def compare(
    job: Job, kind: Kind, variants: Mapping[str, tuple[str, ...]], dataset: ShardSet | None = None,
    beside: Sequence[BatchProgram] = (),
) -> None:  # fmt: skip
    """Time variants of ResNet-50's recipe, and other programs beside them, all alternately.

    variants: name → overrides of the recipe. beside: further programs. dataset: by default `originals`. "compute" reads
    no images and uses a small set with as many classes as ImageNet.

    Reports a row for each program, and for the ratio of the first to each other one. Also reports the time to build
    each variant and do its first work, which includes compiling. If a variant cannot be built, its row has the error
    and the others continue.
    """
    built = list[BatchProgram]()
    for name, sets in variants.items():
        with job.report.attempt(name):
            started, program = time.perf_counter(), build(job, kind, sets, dataset)
            program.name = name
            program.run(1e-3)
            job.report.row(f"{name}: built, first work", time.perf_counter() - started, "s")
            built.append(program)
    if built:
        measured(job, [*built, *beside])


def build(job: Job, kind: Kind, sets: tuple[str, ...], dataset: ShardSet | None = None) -> BatchProgram:
    """Build a variant of ResNet-50's recipe for `compare`."""
    environment.choose_kernels()
    recipe = job.resnet(*sets)
    if kind == "compute":
        dataset = small_set(job, NUM_CLASSES, NUM_CLASSES)
    loader = "synthetic" if kind == "compute" else recipe.data.loader
    return programs.build(kind, loader, recipe, dataset or originals(job), job.world, job.scale.batch_size)


def measured(job: Job, built: Sequence[BatchProgram]) -> None:
    """Time programs alternately, report their rows, and close them.

    A program's row is reported again after each repeat, since time may run out.
    """
    try:
        samples = in_turn(built, job.scale.seconds, 0)  # the warm-up
        for program in [*built] * job.scale.repeats:
            taken = samples[program.name]
            taken.append(program.run(job.scale.seconds))
            wait, ahead = [one.data_wait for one in taken], [one.ahead for one in taken]
            text = f"waiting {median(wait):.1%}, CPU {median(ahead):.2f} steps ahead"
            memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_initialized() else None  # by all programs
            job.report.row(program.name, [one.images_per_s for one in taken], "images/s", text,
                           details={"data_wait": wait, "ahead": ahead, "memory_gb": memory})  # fmt: skip
    finally:
        for program in built:
            program.close()
    rates = {name: [one.images_per_s for one in taken] for name, taken in samples.items()}
    first, *others = rates
    for other in others:
        found = ratio(rates[first], rates[other])
        job.report.row(f"{first} / {other}", found.median, "times", f"[{found.min:.3f}–{found.max:.3f}]",
                       details=found._asdict())  # fmt: skip


def pixels(job: Job) -> None:
    """Compare batches of decoded images on the GPU with batches of JPEGs, on CIFAR-10 at 32 px.

    A rehearsal uses a small set instead.
    """
    dataset = ShardSet.open(job.cifar) if job.cifar else small_set(job, job.scale.run_images)
    small = "data.image_size=32", "data.val_image_size=32", "data.val_resize_size=32"
    variants = {"pixels": (*small, "data.cache=pixels"), "JPEGs, decoded by the CPU": (*small, "data.gpu_decode=off"),
                "pixels, moved, not resized": (*small, "data.cache=pixels", "augment.crop=pad")}  # fmt: skip
    compare(job, "loader", variants, dataset)


def bare(job: Job) -> None:
    """Time the project's step and a bare loop of the same network alternately, to show the overhead around a step."""
    size, side = job.scale.batch_size, job.resnet().data.image_size
    images = torch.randn(size, 3, side, side, device=job.device).to(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(NUM_CLASSES, (size,), device=job.device), torch.arange(size))
    loop = BatchProgram("bare loop", repeat(batch), bare_step(job), job.device)
    compare(job, "compute", {"ours": ("model.compile=false", "train.precision=bf16")}, beside=[loop])


def bare_step(job: Job) -> Callable[[Iterator[Batch]], None]:
    """Return a plain training step of torchvision's network: no log, no checkpoint, no plan."""
    network = torchvision.models.resnet18 if job.rehearse else torchvision.models.resnet50
    net = network(num_classes=NUM_CLASSES).to(job.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-5, fused=True)

    def step(batches: Iterator[Batch]) -> None:
        images, labels, _ = next(batches)
        with torch.autocast(job.device.type, dtype=torch.bfloat16, enabled=not job.rehearse):
            loss = cross_entropy(net(images).float(), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
