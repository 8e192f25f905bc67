"""Distillation: the loss is compared with timm's task and DeiT's formula, the teacher with its original network.

The teacher gets images as in its own training.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from timm.task.distillation import DistillationTeacher, LogitDistillationTask
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from penstock.model import networks, weight_files
from penstock.model.config import LossConfig
from penstock.model.losses import LOSSES, build_loss
from penstock.model.names import check_teacher
from penstock.model.networks import build_model
from penstock.recipes import Recipe, config
from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shards.format import ClassInfo
from penstock.training.distributed import World
from penstock.training.learner import Learner, build_learner
from penstock.training.teacher import Teacher
from tests.common.checkpoints import CLASSES, opinionated, recipe_of, write_checkpoint

CPU = World(0, 0, 1, 1, torch.device("cpu"))
MEAN, STD = (120.0, 100.0, 80.0), (60.0, 50.0, 70.0)  # a teacher's own
OURS = [ClassInfo(**info) for info in CLASSES]


class Given(nn.Module):
    """A network for timm's task that returns its input."""

    def __init__(self, logits: Tensor, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.5,) * 3) -> None:
        super().__init__()
        self.logits, self.num_classes, self.in_chans = logits, logits.shape[1], 3
        self.pretrained_cfg = {"mean": mean, "std": std}

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


@pytest.mark.parametrize("labels", [torch.arange(16) % 7, torch.rand(16, 7).softmax(1)], ids=["labels", "shares"])
@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.1, 3.0), (1.0, 4.0)])
def test_soft_targets_are_timms(weight: float, temperature: float, labels: Tensor) -> None:
    ours, theirs = 3 * torch.randn(16, 7), 3 * torch.randn(16, 7)
    task = LogitDistillationTask(
        Given(ours), DistillationTeacher(Given(theirs)), nn.CrossEntropyLoss(label_smoothing=0.1),
        task_loss_weight=1 - weight, temperature=temperature, verbose=False,
    )  # fmt: skip
    expected = task(torch.zeros(16, 3, 8, 8), labels)["loss"]
    loss = build_loss(LossConfig(teacher="x", teacher_weight=weight, temperature=temperature))
    torch.testing.assert_close(loss(ours, labels, theirs), expected)


def test_hard_targets_are_the_teachers_class() -> None:
    """Touvron et al. 2021, equation 3."""
    ours, theirs, labels = torch.randn(16, 7), torch.randn(16, 7), torch.randint(7, (16,))
    loss = build_loss(LossConfig(teacher="x", distillation="hard", label_smoothing=0.0))
    expected = (F.cross_entropy(ours, labels) + F.cross_entropy(ours, theirs.argmax(1))) / 2
    torch.testing.assert_close(loss(ours, labels, theirs), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_what_was_quarantined_does_not_count(name: Any, kind: Any) -> None:
    loss = build_loss(LossConfig(name=name, teacher="x", distillation=kind))
    logits, answers, labels = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5), torch.randint(5, (8,))
    labels[2] = labels[5] = -100
    kept = labels != -100
    found = loss(logits, labels, answers)
    torch.testing.assert_close(found, loss(logits[kept], labels[kept], answers[kept]))
    found.backward()
    assert logits.grad is not None
    assert not logits.grad[~kept].any()
    assert loss(logits, torch.full((8,), -100), answers) == 0
    shares = F.one_hot(labels.clamp(min=0), 5) * kept[:, None].float()
    shares[0] /= 4  # three quarters of the mix were excluded
    weights = shares.sum(1)
    each = torch.stack([loss(logits[i : i + 1], shares[i : i + 1], answers[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(loss(logits, shares, answers), (each * weights).sum() / weights.sum())


def test_the_main_head_alone_follows_the_teacher() -> None:
    logits, auxiliary, answers, labels = *torch.randn(3, 8, 5), torch.randint(5, (8,))
    plain, taught = build_loss(LossConfig()), build_loss(LossConfig(teacher="x", teacher_weight=0.25))
    by_teacher = F.kl_div(logits.log_softmax(1), answers.softmax(1), reduction="batchmean")
    expected = 0.75 * plain((logits, auxiliary, None), labels) + 0.25 * by_teacher
    torch.testing.assert_close(taught((logits, auxiliary, None), labels, answers), expected)


def built(teacher: str, *overrides: str, classes: Sequence[ClassInfo] = OURS, said: Any = None) -> Learner:
    recipe = recipe_of(f"loss.teacher={teacher}", *overrides)
    return build_learner(recipe, len(classes), CPU, said.append if said is not None else lambda line: None, classes)


def saved_as(kind: str, path: Path) -> tuple[str, nn.Module]:
    """A teacher with its own normalisation, and a blur, in a file of one kind."""
    made_by = recipe_of("model.blurpool=true", f"data.mean={[*MEAN]}", f"data.std={[*STD]}")
    net = write_checkpoint(path / "teacher.pt", made_by)
    if kind == "a checkpoint's average":
        net = opinionated(made_by, len(CLASSES), seed=2)
        write_checkpoint(path / "teacher.pt", made_by, ema=net.state_dict())
    if kind == "a run":
        (path / "run" / "checkpoints").mkdir(parents=True)
        (path / "teacher.pt").rename(path / "run" / "checkpoints" / "best.pt")
        return str(path / "run"), net
    model = {"name": "cifar_resnet8", "blurpool": True}
    said = {"model": model, "mean": MEAN, "std": STD, "classes": CLASSES}
    if kind == "an export":
        torch.save(net.state_dict(), path / "teacher.pt")
        (path / "teacher.pt.json").write_text(json.dumps(said))
    if kind == "safetensors":
        state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
        save_file(state, path / "teacher.safetensors", {name: json.dumps(value) for name, value in said.items()})
        return str(path / "teacher.safetensors"), net
    return str(path / "teacher.pt"), net


@pytest.mark.parametrize("kind", ["a checkpoint", "a checkpoint's average", "a run", "an export", "safetensors"])
def test_a_teacher_answers_as_the_network_it_was(kind: str, tmp_path: Path) -> None:
    teacher, net = saved_as(kind, tmp_path)
    said: list[str] = []
    learner = built(teacher, said=said)
    pixels = torch.randint(256, (8, 3, 32, 32)).double()
    levels = recipe_of().data.mean, recipe_of().data.std
    ours, theirs = (
        ((pixels - torch.tensor(m)[:, None, None]) / torch.tensor(s)[:, None, None]).float()
        for m, s in (levels, (MEAN, STD))
    )
    found = learner.answers(ours)
    assert found is not None
    assert not found.requires_grad
    torch.testing.assert_close(found, net.eval()(theirs), rtol=1e-4, atol=1e-4)
    assert said == [f"teacher: cifar_resnet8, {said[0].partition(', ')[2]}"]


def test_a_teacher_trained_alike_sees_the_images_as_they_are(tmp_path: Path) -> None:
    net, images = write_checkpoint(tmp_path / "a.pt", recipe_of()), torch.randn(4, 3, 32, 32)
    learner = built(str(tmp_path / "a.pt"))
    assert learner.teacher is not None
    assert learner.teacher.scale is None
    assert torch.equal(learner.teacher(images), net.eval()(images))
    learner.net.train()
    assert not any(module.training for module in learner.teacher.modules())
    assert not any(parameter.requires_grad for parameter in learner.teacher.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_conversion_keeps_the_layout(dtype: torch.dtype) -> None:
    seen: list[Tensor] = []
    net = nn.Identity()
    net.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    images = torch.randn(2, 3, 8, 8).to(dtype, memory_format=torch.channels_last)
    Teacher(net, torch.full((1, 3, 1, 1), 2.0), torch.full((1, 3, 1, 1), 1.0))(images)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(seen[0], images.float() * 2 + 1)


def test_its_rows_are_those_of_the_datasets_classes(tmp_path: Path) -> None:
    net, images = write_checkpoint(tmp_path / "a.pt", recipe_of()), torch.randn(4, 3, 32, 32)
    learner = built(str(tmp_path / "a.pt"), classes=[OURS[5], OURS[0], OURS[2]])
    torch.testing.assert_close(learner.answers(images), net.eval()(images)[:, [5, 0, 2]])


def test_torchvisions_weights_and_timms_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's weights state the normalisation of their images. Bare weights use the student's."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    peer = torchvision.models.squeezenet1_1(num_classes=7).eval()
    torch.save(peer.state_dict(), tmp_path / "bare.pt")
    learner = built("squeezenet1_1", f"loss.teacher_weights={tmp_path / 'bare.pt'}")
    torch.testing.assert_close(learner.answers(images), peer(images))

    monkeypatch.setitem(
        networks.OWN_NETWORKS, "airbench94", lambda n: timm.create_model("test_vit", num_classes=n, img_size=32)
    )
    net = build_model(config.load_config(Recipe, None, ["model.name=airbench94"]).model, 7).eval()
    assert net.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    torch.save(net.state_dict(), tmp_path / "timms.pt")
    learner = built("airbench94", f"loss.teacher_weights={tmp_path / 'timms.pt'}")
    mean, std = (torch.tensor(levels)[:, None, None] for levels in (recipe_of().data.mean, recipe_of().data.std))
    expected = net(((images * std + mean) / 255 - 0.5) / 0.5)
    torch.testing.assert_close(learner.answers(images), expected, rtol=1e-4, atol=1e-4)


def test_published_weights_are_of_imagenets_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    peer, images = torchvision.models.squeezenet1_1().eval(), torch.randn(2, 3, 32, 32)
    monkeypatch.setattr(weight_files, "_fetched", lambda published, source, library: peer.state_dict())
    classes = [ClassInfo(*item) for item in [*imagenet_classes().items()][4:6]]
    named = "squeezenet1_1", "loss.teacher_weights=DEFAULT", f"data.mean={[*MEAN]}", f"data.std={[*STD]}"
    shares = (images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) / 255
    expected = peer(torchvision.transforms.functional.normalize(shares, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(built(*named, classes=classes).answers(images), expected[:, 4:6], rtol=1e-4, atol=1e-4)


def test_without_a_teacher_nothing_changes() -> None:
    learner = build_learner(recipe_of(), 7, CPU)
    assert learner.answers(torch.randn(2, 3, 32, 32)) is None
    logits, labels = torch.randn(8, 7), torch.randint(7, (8,))
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum") / 8
    assert torch.equal(learner.loss_fn(logits, labels), smoothed)


def test_it_is_compiled_with_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[Any, dict[str, Any]]] = []
    compile = torch.compile

    def eagerly(net: nn.Module, **options: Any) -> Any:
        compiled.append((compile(net, backend="eager", dynamic=False), options))
        return compiled[-1][0]

    monkeypatch.setattr(torch, "compile", eagerly)
    net, images = write_checkpoint(tmp_path / "a.pt", recipe_of()), torch.randn(4, 3, 32, 32)
    built(str(tmp_path / "a.pt"))
    assert compiled == []
    learner = built(str(tmp_path / "a.pt"), "model.compile=true")
    assert [one for one, _ in compiled] == [learner.model, learner.teacher]
    assert compiled[1][1] == {"dynamic": False}, "no CUDA graphs"
    torch.testing.assert_close(learner.answers(images), net.eval()(images))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher=nosuch.pt"], "loss.teacher: nosuch.pt: no such file or run, and unknown network 'nosuch.pt'"),
        (["teacher=resnet18"], "loss.teacher_weights: which weights of resnet18"),
        (
            ["teacher=FILE", "teacher_weights=x.pt"],
            r"loss.teacher_weights: has no effect if loss.teacher is a file or a run \(FILE\)",
        ),
        (["teacher=resnet18", "teacher_weights=FILE"], "loss.teacher: FILE: not weights of this resnet18"),
        (["teacher=resnet18", "teacher_weights=nosuch"], "loss.teacher: nosuch: neither a file nor"),
        (["teacher=FOLDER"], "loss.teacher: FOLDER: not a run's directory"),
        (["teacher=BARE"], "loss.teacher: BARE: does not name its network. Set loss.teacher to the network's name"),
        (["teacher=LATER"], "loss.teacher: LATER: this version cannot build its network"),
        (["teacher=OTHER"], r"loss.teacher: OTHER: its head is for other classes \(.*7 → 7 classes, only 6 in common"),
        (["teacher=VIT"], "loss.teacher: airbench94 accepts only images of 64 px, but training uses 32 px"),
    ],
)  # fmt: skip
def test_bad_teachers_cost_a_line(overrides: list[str], message: str, tmp_path: Path, monkeypatch: Any) -> None:
    net = write_checkpoint(tmp_path / "FILE", recipe_of())
    write_checkpoint(tmp_path / "OTHER", recipe_of(), classes=[*CLASSES[:6], {"wnid": "n99999999", "name": "else"}])
    torch.save(net.state_dict(), tmp_path / "BARE")
    torch.save(net.state_dict(), tmp_path / "LATER")
    (tmp_path / "LATER.json").write_text('{"model": {"name": "cifar_resnet8", "wings": 2}}')
    (tmp_path / "FOLDER").mkdir()
    if "teacher=VIT" in overrides:
        vit = partial(VisionTransformer, 64, 16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8)
        monkeypatch.setitem(networks.OWN_NETWORKS, "airbench94", lambda n: vit(num_classes=n))
        torch.save(vit(num_classes=7).state_dict(), tmp_path / "VIT")
        (tmp_path / "VIT.json").write_text(json.dumps({"model": {"name": "airbench94"}, "classes": CLASSES}))
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(*(f"loss.{override}" for override in overrides))
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        build_learner(recipe, 7, CPU, classes=OURS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 3.0}, "temperature: has no effect without teacher; remove it, or set teacher"),
        ({"teacher_weight": 0.3}, "teacher_weight: has no effect without teacher"),
        ({"teacher_weights": "x"}, "teacher_weights: has no effect without teacher"),
        ({"distillation": "hard"}, "distillation: has no effect without teacher"),
        ({"teacher": "x", "distillation": "hard", "temperature": 2.0}, "temperature: has no effect unless distill"),
    ],
)  # fmt: skip
def test_settings_without_effect(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        LossConfig(**values)
    check_teacher("", "")  # none is named
