"""The sections `[model]`, `[loss]`, `[optimizer]`, `[schedule]` and `[ema]` of a recipe, without torch.

Errors in a recipe thus appear in half a second, before torch is imported. A test checks that the names here are those
of the registries beside the code (`LOSSES`, `OPTIMIZERS`, `DECAYS`).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args, get_type_hints

from penstock.model.names import TIMM
from penstock.settings import check, setting

# Keyword arguments of timm that are already determined, and by what.
TIMM_KEYWORDS = {
    "num_classes": "the dataset",
    "img_size": "data.image_size",
    "pretrained": "model.pretrained",
    "drop_rate": "model.dropout",
    "drop_path_rate": "model.stochastic_depth",
    "zero_init_last": "model.zero_init_residual",
    "in_chans": "the images, which are RGB",
    "features_only": "the loss, which needs logits",
}
CompileMode = Literal["auto", "default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network, and how it runs. A setting that is unset ("none") keeps the value of the published network."""

    name: str = setting(
        "resnet50",
        "Name of the network: torchvision's classification networks, this project's own, or `timm/NAME` for timm's. A "
        "timm network also sets the defaults of [data]: the mean, std, sizes and filter of its weights.",
    )
    stem: Literal["imagenet", "small"] = setting(
        "imagenet",
        '"imagenet" keeps the published network; "small" gives a ResNet a 3×3 stride-1 stem without max-pooling.',
    )
    zero_init_residual: bool | None = setting(
        None,
        "Start residual branches at zero (Goyal et al. 2017, section 5.1). Unset: yes, if the network supports it.",
    )
    blurpool: bool = setting(
        False,
        "Blur before strided convolutions with 16 or more channels, as the FFCV recipes do (model/blurpool.py).",
    )
    stochastic_depth: float | None = setting(
        None,
        "Probability that the last residual branch is dropped in training. Earlier branches are dropped less "
        "(model/stochastic_depth.py).",
        at_least=0,
        below=1,
    )
    dropout: float | None = setting(
        None,
        "Probability of the network's dropout. In convolutional networks, the dropout is before the head.",
        at_least=0,
        below=1,
    )
    aux_logits: bool = setting(
        False,
        "Train GoogLeNet or Inception v3 with its auxiliary heads. Inception v3 then needs images of 299 px or more. "
        "Validation uses the main head only.",
    )
    pretrained: str = setting(
        "",
        "Weights to start from: a file, a run, or a name that torchvision or timm publishes. Names are, for example, "
        '"DEFAULT", "IMAGENET1K_V2" and "a1_in1k" (model/pretrained.py).',
        free_on_resume=True,
    )
    timm_args: tuple[str, ...] = setting(
        (),
        "Further keyword arguments of a timm network, each `NAME=VALUE`, like `--model-kwargs` of timm's train.py. "
        'For example: ["global_pool=avg", "class_token=false"].',
    )
    channels_last: bool = setting(True, "Keep weights and activations in channels-last (NHWC) memory order.")
    compile: Literal[False, True, "auto"] = setting(
        False,
        '`torch.compile` the network; "auto" does so on GPUs only. Compiling takes about a minute for each image size.',
        free_on_resume=True,
    )
    compile_mode: CompileMode = setting(
        "auto",
        'Mode of torch.compile. "auto" is `reduce-overhead` on one GPU without train.accumulation, otherwise '
        "`default`. `reduce-overhead` and `max-autotune` record CUDA graphs, which do not work with "
        "train.accumulation. The two max-autotune modes also time more kernels, so they compile for longer.",
        free_on_resume=True,
    )
    sync_batch_norm: bool = setting(False, "BatchNorm over the batches of all ranks, if one rank's batch is too small.")

    def __post_init__(self) -> None:
        check(self)
        if self.compile_mode not in ("auto", "default") and not self.compile:
            raise ValueError(f"compile_mode: {self.compile_mode} has no effect without compile = true")
        if self.timm_args and not self.name.startswith(TIMM):
            raise ValueError(f'timm_args: has no effect with name = "{self.name}"; remove it')
        for argument in self.timm_args:
            name, equals, _ = argument.partition("=")
            if not equals or name in TIMM_KEYWORDS:
                why = f"is set by {TIMM_KEYWORDS[name]}" if equals else "must be NAME=VALUE"
                raise ValueError(f"timm_args: {argument!r} {why}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What training minimises."""

    name: Literal["cross_entropy", "bce", "mse"] = setting(
        "cross_entropy",
        'Loss: "cross_entropy" of the softmax; "bce", binary cross-entropy of each class\'s sigmoid; or "mse", '
        'the squared distance of logits and target shares (Hui & Belkin 2021, without rescaling). "bce" and "mse" are '
        "means over the classes, as in torch and timm, not sums.",
    )
    label_smoothing: float = setting(
        0.1,
        "Label smoothing s: target 1 − s + s / C for the class, s / C for the others (Szegedy et al. 2016, section 7).",
        at_least=0,
        below=1,
    )
    bce_target_threshold: float | None = setting(
        None,
        "Set targets above this value to 1 and all others to 0, after smoothing. An image made by mixup or CutMix "
        "then shows each of its classes in full (Wightman et al. 2021; timm's `--bce-target-thresh`).",
        at_least=0,
        below=1,
    )
    aux_weight: float = setting(
        0.4,
        "Weight of each auxiliary head's loss beside the main head's (0.4 for Inception v3, 0.3 for GoogLeNet).",
        at_least=0,
    )
    teacher: str = setting(
        "",
        "Trained network to learn from (distillation): a run, checkpoint or export of this program, or a network's "
        "name as in `model.name`, which needs `teacher_weights`; empty for none.",
    )
    teacher_weights: str = setting(
        "",
        "Weights of a teacher that is given by name: a file or published weights, as in `model.pretrained`.",
        belongs_to="teacher",
    )
    teacher_weight: float = setting(
        0.5,
        "Weight α of the teacher: the loss is (1 − α) · loss by the labels + α · loss by the teacher.",
        above=0,
        at_most=1,
        belongs_to="teacher",
    )
    distillation: Literal["soft", "hard"] = setting(
        "soft",
        'Loss by the teacher: "soft" is T² · KL of the softmaxes of logits / T (Hinton et al. 2015, as in timm), '
        '"hard" the cross-entropy with the teacher\'s class (Touvron et al. 2021, DeiT).',
        belongs_to="teacher",
    )
    temperature: float = setting(1.0, 'Temperature T of "soft" distillation.', above=0, belongs_to="teacher")

    def __post_init__(self) -> None:
        _check_name(self, "loss")
        check(self)
        if self.distillation == "hard" and self.temperature != 1.0:
            raise ValueError('temperature: has no effect unless distillation = "soft"; remove it')
        if self.bce_target_threshold is not None and self.name != "bce":
            raise ValueError('bce_target_threshold: has no effect unless name = "bce"; remove it')


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer: how a gradient changes the weights."""

    name: Literal["sgd", "adagrad", "rmsprop", "adam", "adamw", "adan", "lion", "lars", "lamb", "muon"] = setting(
        "sgd",
        'Optimizer: torch\'s "sgd", "adagrad", "rmsprop", "adam", "adamw", or timm\'s "adan" (Xie et al. 2022), '
        '"lion" (Chen et al. 2023), "lars" (You et al. 2017), "lamb" (You et al. 2019), "muon" (Jordan et al. 2024). '
        "Muon trains the network's inner matrices, and convolution kernels reshaped to matrices. AdamW (NAdamW with "
        "`nesterov`) trains heads, embeddings, depthwise kernels, norms and biases at `fallback_lr_scale` · `lr`.",
    )
    lr: float = setting(0.1, "Base learning rate. It is not scaled with the batch size.", above=0)
    weight_decay: float = setting(
        5e-5,
        "Weight decay of parameters with two or more dimensions. Norms and biases do not decay, nor do the positions "
        "and class tokens of transformers (model/optim.py). adamw, lion, adan and muon decay the weights by lr · "
        "weight_decay (decoupled). lamb adds the decay to the update before scaling it. The others add it to the "
        "gradient (L2).",
        at_least=0,
    )
    bias_lr_scale: float = setting(
        1.0,
        'Learning rate of norms and biases, as a multiple of `lr` (64 in Jordan 2024, section 3.4, "scalebias").',
        above=0,
    )
    momentum: float = setting(
        0.9,
        "Momentum of sgd, rmsprop, lars and muon (timm's default for muon is 0.95). LARS sums gradients before lr "
        "multiplies them, as torch's SGD does. The paper's sum includes lr. Goyal et al. 2017 (section 3) and "
        "NVIDIA's MLPerf code correct that sum when lr changes, with the same result as here.",
        at_least=0,
        below=1,
        belongs_to="name",
        when=("sgd", "rmsprop", "lars", "muon"),
    )
    nesterov: bool = setting(True, "Use Nesterov momentum, in sgd and muon.", belongs_to="name", when=("sgd", "muon"))
    betas: tuple[float, ...] | None = setting(
        None,
        "Decay rates of the moving averages: three for adan, two for adam, adamw, lamb, lion and muon's AdamW. Unset: "
        "the defaults of the paper or the library.",
        at_least=0,
        below=1,
        belongs_to="name",
        when=("adam", "adamw", "adan", "lion", "lamb", "muon"),
    )
    eps: float | None = setting(
        None,
        "Small number in a denominator that keeps the quotient finite. Unset: the library's. sgd, lion: none.",
        at_least=0,
        belongs_to="name",
        when=("adagrad", "rmsprop", "adam", "adamw", "adan", "lars", "lamb", "muon"),
    )
    alpha: float = setting(
        0.99, "Decay of rmsprop's moving average.", at_least=0, below=1, belongs_to="name", when=("rmsprop",)
    )
    trust_coefficient: float = setting(
        0.001,
        "Trust coefficient of lars, η in its paper. In LARS and LAMB, norms and biases use the plain lr, as in the "
        "code of MLPerf and NVIDIA.",
        above=0,
        belongs_to="name",
        when=("lars",),
    )
    ns_steps: int = setting(
        5, "Newton-Schulz steps that make muon's update orthogonal.", at_least=1, belongs_to="name", when=("muon",)
    )
    ns_coefficients: Literal["original", "quintic", "polar_express"] = setting(
        "quintic",
        'Polynomials of muon\'s Newton-Schulz steps: "original" is Jordan\'s, the same in each step; "quintic" has '
        'one for each of five steps, "polar_express" (Amsel et al. 2025) for each of eight.',
        belongs_to="name",
        when=("muon",),
    )
    adjust_lr: Literal["original", "match_rms_adamw", "rms_to_rms"] = setting(
        "match_rms_adamw",
        'Factor of muon\'s lr for an n × m matrix: "original" √max(1, n / m) (Jordan\'s), "match_rms_adamw" 0.2 '
        '√max(n, m), so that lr and decay are AdamW\'s (Liu et al. 2025), "rms_to_rms" √(n / m).',
        belongs_to="name",
        when=("muon",),
    )
    fallback_lr_scale: float = setting(
        1.0, "Learning rate of muon's AdamW, as a multiple of lr.", above=0, belongs_to="name", when=("muon",)
    )
    fused: bool | None = setting(
        None,
        "Update all parameters in one kernel. Unset: yes, if torch has such a kernel for the device. torch has them "
        "for CPU and CUDA, for adagrad on the CPU only. rmsprop and timm's optimizers have none.",
        belongs_to="name",
        when=("sgd", "adagrad", "adam", "adamw"),
    )

    def __post_init__(self) -> None:
        _check_name(self, "optimizer")
        check(self)
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0; set nesterov = false")
        wanted = 3 if self.name == "adan" else 2
        if self.betas is not None and len(self.betas) != wanted:
            raise ValueError(f"betas: {list(self.betas)} must be {wanted} numbers in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the epochs: a warm-up, then a decay."""

    name: Literal["cosine", "linear", "constant", "step", "polynomial", "one_cycle"] = setting(
        "cosine",
        'Decay of the learning rate after the warm-up: "cosine", "linear", "constant", "step", "polynomial" or '
        '"one_cycle". "linear" with a warm-up from 0 is ffcv-imagenet\'s triangle. "step" multiplies by `gamma` '
        'at each of `milestones`, or every `step_epochs`, both counted from the run\'s start. "polynomial" is (1 − '
        'progress) ** power. "one_cycle" also rises along a cosine, like torch\'s OneCycleLR (Smith & Topin 2018), '
        "but does not cycle the momentum: `warmup_epochs` is torch's pct_start · epochs, 1 / start_factor its "
        "div_factor.",
    )
    warmup_epochs: float | None = setting(
        None,
        "Number of epochs in which the rate rises linearly; it may have a fraction. Unset: 5, or a fifth of a run "
        "shorter than 25 epochs.",
        at_least=0,
    )
    start_factor: float = setting(
        0.01, "Learning rate at the start of the warm-up, as a fraction of `optimizer.lr`.", at_least=0, at_most=1
    )
    decay_after_warmup: bool = setting(
        True,
        "Begin the decay when the warm-up ends (Goyal et al. 2017). If false, the decay is counted from the run's "
        "start, as in timm: when the warm-up ends, the rate drops at once to the decay's value.",
        belongs_to="name",
        when=("cosine", "linear", "polynomial"),
    )
    final_lr: float = setting(
        0.0,
        "Learning rate at the end of the decay, as a rate, not as a factor.",
        at_least=0,
        belongs_to="name",
        when=("cosine", "linear", "polynomial", "one_cycle"),
    )
    milestones: tuple[float, ...] = setting(
        (), 'Epochs at which "step" multiplies the rate.', above=0, belongs_to="name", when=("step",)
    )
    step_epochs: float = setting(
        0.0, 'Number of epochs between two multiplications of "step".', at_least=0, belongs_to="name", when=("step",)
    )
    gamma: float = setting(0.1, 'Factor of "step".', above=0, belongs_to="name", when=("step",))
    power: float = setting(2.0, 'Exponent of "polynomial".', above=0, belongs_to="name", when=("polynomial",))

    def __post_init__(self) -> None:
        _check_name(self, "schedule")
        check(self)
        if any(a >= b for a, b in pairwise(self.milestones)):
            raise ValueError(f"milestones: {list(self.milestones)} must be above 0 and increase")
        if self.name == "step" and bool(self.milestones) == bool(self.step_epochs):
            raise ValueError('milestones: name = "step" needs either milestones or step_epochs')
        if not self.decay_after_warmup and self.warmup_epochs == 0:
            raise ValueError("decay_after_warmup: has no effect with warmup_epochs = 0; remove it")


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An exponential moving average of the weights. It is validated and saved along with them."""

    decay: float = setting(0.0, "Decay of the average per step; 0 switches the average off.", at_least=0, below=1)
    warmup: bool = setting(
        True,
        "At step t, use the decay (1 + t) / (10 + t) if that is smaller, so that a short run forgets its first weights "
        "(as in Inception's training, TensorFlow's `num_updates`).",
    )

    def __post_init__(self) -> None:
        check(self)


def _check_name(section: LossConfig | OptimizerConfig | ScheduleConfig, kind: str) -> None:
    """Raises ValueError if the section's `name` is not one that its annotation allows."""
    names = get_args(get_type_hints(type(section))["name"])
    if section.name not in names:
        raise ValueError(f"name: unknown {kind} {section.name!r}; known are {', '.join(names)}")
