"""Training with a teacher: steps compared with timm's task, and the behaviour of `train.py` and `bench.py`."""

from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from timm.task.distillation import DistillationTeacher, LogitDistillationTask
from torch import Tensor, nn

from penstock import bench, train
from penstock.model import networks
from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Batch
from penstock.pipeline.mixing import Mixer
from penstock.shards.format import ShardSet
from penstock.training.distributed import World
from penstock.training.learner import build_learner
from penstock.training.step import train_step
from penstock.training.teacher import Teacher
from tests.common.checkpoints import recipe_of, write_checkpoint
from tests.common.fake_cuda import WORLD, fake_cuda
from tests.common.runs import by_step, run

CPU = World(0, 0, 1, 1, torch.device("cpu"))
TEACHER = "data.mean=[120.0, 100.0, 80.0]", "data.std=[60.0, 50.0, 70.0]"  # its images


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, dataset: ShardSet) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    classes = [{"wnid": info.wnid, "name": info.name} for info in dataset.classes]
    write_checkpoint(path, recipe_of(*TEACHER), classes=classes)
    return path


def test_steps_are_those_of_timms_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three steps of SGD on mixed images, in training mode, with networks of timm's."""
    monkeypatch.setitem(networks.OWN_NETWORKS, "airbench94", lambda n: timm.create_model("test_resnet", num_classes=n))
    theirs = timm.create_model("test_vit2", num_classes=7, img_size=32)  # (0.5, 0.5, 0.5)
    monkeypatch.setitem(networks.OWN_NETWORKS, "cifar_resnet8", lambda n: theirs)
    torch.save(theirs.state_dict(), tmp_path / "teacher.pt")
    recipe = recipe_of(
        "model.name=airbench94", "loss.teacher=cifar_resnet8", f"loss.teacher_weights={tmp_path / 'teacher.pt'}",
        "loss.teacher_weight=0.3", "loss.temperature=2.0", "optimizer.lr=0.1", "optimizer.weight_decay=0",
        "optimizer.nesterov=false", "loss.label_smoothing=0", "model.channels_last=false",
    )  # fmt: skip
    learner = build_learner(recipe, 7, CPU)
    student = timm.create_model("test_resnet", num_classes=7)
    student.load_state_dict(learner.net.state_dict())
    student.pretrained_cfg = {**student.pretrained_cfg, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    task = LogitDistillationTask(
        student, DistillationTeacher(theirs), nn.CrossEntropyLoss(), task_loss_weight=0.7, temperature=2.0,
        verbose=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    torch.manual_seed(0)
    batch = Batch(torch.randn(16, 3, 32, 32), torch.randint(7, (16,)), torch.arange(16))
    batch = Mixer(AugmentConfig(mixup=0.5), 7)(batch)
    assert batch.labels.shape == (16, 7)
    for _ in range(3):
        learner.net.train()
        task.train()
        expected = task(batch.images, batch.labels)["loss"]
        expected.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = train_step(learner, repeat(batch), recipe.train).loss
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-4)


def test_a_run_resumes_and_replays_with_its_teacher(
    dataset_dir: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = {"loss__teacher": teacher, "train__checkpoint_every": 2}
    result = run(dataset_dir, tmp_path / "whole", "--max-steps", "4", **taught)
    assert result.exit_code == 0, result.output
    assert f"teacher: cifar_resnet8, {teacher}" in result.output
    losses = by_step(tmp_path / "whole", "loss")

    assert run(dataset_dir, tmp_path / "parts", "--max-steps", "2", **taught).exit_code == 0
    moved = teacher.rename(teacher.with_name("moved.pt"))
    refused = run(dataset_dir, tmp_path / "parts", "--max-steps", "4", **taught)
    moved.rename(teacher)
    assert refused.exit_code == 1
    assert f"loss.teacher: {teacher}: no such file or run, and unknown network" in refused.output
    assert run(dataset_dir, tmp_path / "parts", "--max-steps", "4", **taught).exit_code == 0
    assert by_step(tmp_path / "parts", "loss") == losses
    assert f'teacher = "{teacher}"' in (tmp_path / "parts" / "config.toml").read_text()

    def broken(learner: Any, *arguments: Any) -> Any:
        step = train_step(learner, *arguments)
        made.append(step)
        return step._replace(loss=step.loss * float("nan")) if len(made) == 4 else step

    made: list[Any] = []
    monkeypatch.setattr("penstock.training.step.train_step", broken)
    assert run(dataset_dir, tmp_path / "broken", "--max-steps", "4", **taught).exit_code == 1
    (file,) = (tmp_path / "broken").glob("failed-step-*.pt")
    replayed = CliRunner().invoke(train.main, ["replay", str(file), "--device", "cpu"])
    assert replayed.exit_code == 0, replayed.output
    assert f"step 3: loss {losses[3]:.6g}, gradient norm" in replayed.output


@pytest.mark.parametrize("file", ["out.pt", "out.safetensors"])
def test_an_export_teaches_as_its_checkpoint(file: str, teacher: Path, tmp_path: Path, dataset: ShardSet) -> None:
    exported = CliRunner().invoke(train.main, ["export", str(teacher), str(tmp_path / file)])
    assert exported.exit_code == 0, exported.output
    images, classes = torch.randn(4, 3, 32, 32), dataset.classes
    found = [
        build_learner(recipe_of(f"loss.teacher={path}"), len(classes), CPU, classes=classes).answers(images)
        for path in (teacher, tmp_path / file)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_teacher_of_other_classes_is_refused(dataset_dir: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other.pt", recipe_of())
    result = run(dataset_dir, tmp_path / "run", loss__teacher=tmp_path / "other.pt")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith(
        f"Error: loss.teacher: {tmp_path / 'other.pt'}: its head is for other"
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.usefixtures("short_turns")
def test_benchmarks_run_the_teacher(dataset_dir: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    answer = Teacher.forward
    monkeypatch.setattr(Teacher, "forward", lambda self, images: asked.append(images) or answer(self, images))
    words = ["compute", "--data", str(dataset_dir), "--device", "cpu", "--seconds", "0.2", "--batch-size", "8"]
    sets = ["model.name=cifar_resnet8", "data.image_size=32", f"loss.teacher={teacher}"]
    result = CliRunner().invoke(bench.main, [*words, *(word for one in sets for word in ("--set", one))])
    assert result.exit_code == 0, result.output
    assert asked


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_waits_for_the_gpu(teacher: Path, precision: str) -> None:
    with fake_cuda() as gpu:
        recipe = recipe_of(f"loss.teacher={teacher}", f"train.precision={precision}")
        learner = build_learner(recipe, 3, WORLD)
        learner.net.train()
        assert learner.teacher is not None
        assert all(tensor.is_cuda for tensor in learner.teacher.state_dict().values())
        dtype = torch.float16 if precision == "bf16" else torch.float32
        batch = Batch(gpu.images(4, 32, dtype), gpu.labels(4), torch.empty(4, dtype=torch.int64))
        for _ in range(2):
            train_step(learner, repeat(batch), recipe.train)
        assert gpu.watch.contiguous == []
