"""The sections `[model]`, `[loss]`, `[optimizer]`, `[schedule]` and `[ema]` of a recipe, without torch.

What is wrong in a recipe is so told in half a second, before torch is imported. The names that a section may have are
those of the registry beside the code (`LOSSES`, `OPTIMIZERS`, `DECAYS`), as a test sees to.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args, get_type_hints

from penstock.model.names import TIMM
from penstock.settings import check, setting

# What of timm's keywords settings say, and which.
TIMM_KEYWORDS = {
    "num_classes": "the dataset",
    "img_size": "data.image_size",
    "pretrained": "model.pretrained",
    "drop_rate": "model.dropout",
    "drop_path_rate": "model.stochastic_depth",
    "zero_init_last": "model.zero_init_residual",
    "in_chans": "the images, which are RGB",
    "features_only": "the loss, which takes logits",
}
CompileMode = Literal["auto", "default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and how it runs. Unset (none) means as the network is published."""

    name: str = setting(
        "resnet50",
        "torchvision's of any of its classification networks, or one of this project's; `timm/NAME` is timm's NAME, "
        "with the mean, std, sizes and filter of its weights in [data] where nobody gives them.",
    )
    stem: Literal["imagenet", "small"] = setting(
        "imagenet",
        "`imagenet` is the network as published; `small` gives a ResNet a 3×3 stride-1 stem without max-pooling.",
    )
    zero_init_residual: bool | None = setting(
        None,
        "Start residual branches at zero (Goyal et al. 2017, section 5.1); unset means wherever the network has the "
        "option.",
    )
    blurpool: bool = setting(
        False,
        "Blur before strided convolutions with 16 channels and more, as the FFCV recipes do (model/blurpool.py).",
    )
    stochastic_depth: float | None = setting(
        None,
        "The probability that the last residual branch is dropped in training (model/stochastic_depth.py).",
        at_least=0,
        below=1,
    )
    dropout: float | None = setting(
        None,
        "The probability of the network's dropout: before the head in convolutional networks.",
        at_least=0,
        below=1,
    )
    aux_logits: bool = setting(
        False,
        "GoogLeNet and Inception v3 train with their auxiliary heads, Inception v3 then on 299 px and more; validation "
        "sees the main head alone.",
    )
    pretrained: str = setting(
        "",
        'Weights to start from: a file, a run, or one of torchvision\'s or timm\'s names: "DEFAULT", "IMAGENET1K_V2", '
        '"a1_in1k" (model/pretrained.py).',
        free_on_resume=True,
    )
    timm_args: tuple[str, ...] = setting(
        (),
        "Further keywords of timm's network, `NAME=VALUE` each, as `--model-kwargs` of its train.py: "
        '["global_pool=avg", "class_token=false"].',
    )
    channels_last: bool = setting(True, "Keep weights and activations in NHWC order.")
    compile: Literal[False, True, "auto"] = setting(
        False,
        '`torch.compile` the network, "auto" on GPUs only. The first step of each image size then takes a minute.',
        free_on_resume=True,
    )
    compile_mode: CompileMode = setting(
        "auto",
        "torch.compile's: `reduce-overhead` records CUDA graphs, as does `max-autotune`, which also times more "
        'kernels. "auto" is `reduce-overhead` for one GPU without train.accumulation, else `default`.',
        free_on_resume=True,
    )
    sync_batch_norm: bool = setting(False, "BatchNorm over the batches of all ranks, for those too small each.")

    def __post_init__(self) -> None:
        check(self)
        if self.compile_mode not in ("auto", "default") and not self.compile:
            raise ValueError(f"compile_mode = {self.compile_mode} does nothing without compile = true")
        if self.timm_args and not self.name.startswith(TIMM):
            raise ValueError(f'timm_args: has no effect with name = "{self.name}"; leave it out')
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
        '"cross_entropy" of the softmax; "bce", binary cross-entropy of each class\'s sigmoid; "mse", squared distance '
        "of the logits themselves to the target shares (Hui & Belkin 2021, without their rescaling). The last two are "
        "means over the classes, as in torch and timm, not sums.",
    )
    label_smoothing: float = setting(
        0.1,
        "s of the target 1 − s + s / C for the class and s / C for the others (Szegedy et al. 2016, section 7).",
        at_least=0,
        below=1,
    )
    bce_target_threshold: float | None = setting(
        None,
        "Targets above it become 1, the others 0, after smoothing; so an image made by mixup or CutMix shows each of "
        'its classes in full (Wightman et al. 2021, "ResNet strikes back"; timm\'s `--bce-target-thresh`).',
        at_least=0,
        below=1,
    )
    aux_weight: float = setting(
        0.4,
        "Of each auxiliary head's loss beside the main head's (0.4 for Inception v3, 0.3 for GoogLeNet).",
        at_least=0,
    )
    teacher: str = setting(
        "",
        "A trained network whose answers to the same images training follows, too: a run, a checkpoint or an export of "
        "this program; or a network's name, as `model.name` has it, with `teacher_weights`. Empty for none.",
    )
    teacher_weights: str = setting(
        "",
        "Of a teacher that is a network's name: a file, or a name of published weights, as in `model.pretrained`.",
        belongs_to="teacher",
    )
    teacher_weight: float = setting(
        0.5,
        "α of the whole, (1 − α) · loss by the labels + α · loss by the teacher.",
        above=0,
        at_most=1,
        belongs_to="teacher",
    )
    distillation: Literal["soft", "hard"] = setting(
        "soft",
        'The loss by the teacher: "soft" is T² · KL of the softmaxes of logits / T (Hinton et al. 2015, as timm has '
        'it), "hard" the cross-entropy with the class that the teacher says (Touvron et al. 2021, DeiT).',
        belongs_to="teacher",
    )
    temperature: float = setting(1.0, 'T of "soft" distillation.', above=0, belongs_to="teacher")

    def __post_init__(self) -> None:
        _check_name(self, "loss")
        check(self)
        if self.distillation == "hard" and self.temperature != 1.0:
            raise ValueError('temperature: has no effect unless distillation = "soft"; leave it out')
        if self.bce_target_threshold is not None and self.name != "bce":
            raise ValueError('bce_target_threshold: has no effect unless name = "bce"; leave it out')


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How a gradient changes the weights."""

    name: Literal["sgd", "adagrad", "rmsprop", "adam", "adamw", "adan", "lion", "lars", "lamb", "muon"] = setting(
        "sgd",
        '"sgd", "adagrad", "rmsprop", "adam" and "adamw" are torch\'s; "lars" (You et al. 2017), "lamb" (You et al. '
        '2019), "lion" (Chen et al. 2023), "adan" (Xie et al. 2022) and "muon" (Jordan et al. 2024) are timm\'s. Muon '
        "trains the matrices inside the network, kernels as matrices; AdamW, or with `nesterov` NAdamW, trains heads, "
        "embeddings, depthwise kernels, norms and biases, at `fallback_lr_scale` times `lr`.",
    )
    lr: float = setting(
        0.1, "The base learning rate of a step, as it is: nothing scales it by the batch size.", above=0
    )
    weight_decay: float = setting(
        5e-5,
        "On weights of two or more dimensions; norms and biases have none, nor have positions and class tokens of "
        "transformers (model/optim.py). adamw, lion, adan and muon decay the weights by lr · weight_decay, lamb adds "
        "it to the update before it is scaled, the others to the gradient (L2).",
        at_least=0,
    )
    bias_lr_scale: float = setting(
        1.0,
        'How many times `lr` the norms and biases get (64 in Jordan 2024, section 3.4, "scalebias").',
        above=0,
    )
    momentum: float = setting(
        0.9,
        "Of sgd, rmsprop, lars and muon (timm's default there is 0.95). LARS sums gradients before they are multiplied "
        "by lr, as torch's SGD does; the paper's sum has the lr in it, to which Goyal et al. 2017 (section 3) and "
        "NVIDIA's MLPerf code apply a momentum correction that comes to the same as this.",
        at_least=0,
        below=1,
        belongs_to="name",
        when=("sgd", "rmsprop", "lars", "muon"),
    )
    nesterov: bool = setting(True, "Nesterov's momentum, of sgd and muon.", belongs_to="name", when=("sgd", "muon"))
    betas: tuple[float, ...] | None = setting(
        None,
        "Of adam, adamw, lamb, lion and muon's AdamW two, of adan three; unset, those of its paper, or the library's.",
        at_least=0,
        below=1,
        belongs_to="name",
        when=("adam", "adamw", "adan", "lion", "lamb", "muon"),
    )
    eps: float | None = setting(
        None,
        "What keeps a quotient finite; unset, the library's. Not of sgd and lion, which have none.",
        at_least=0,
        belongs_to="name",
        when=("adagrad", "rmsprop", "adam", "adamw", "adan", "lars", "lamb", "muon"),
    )
    alpha: float = setting(
        0.99, "Of rmsprop, the average's decay.", at_least=0, below=1, belongs_to="name", when=("rmsprop",)
    )
    trust_coefficient: float = setting(
        0.001,
        "Of lars, η in its paper. Norms and biases keep the plain lr in LARS and LAMB (as in MLPerf's and NVIDIA's).",
        above=0,
        belongs_to="name",
        when=("lars",),
    )
    ns_steps: int = setting(
        5, "Of muon, Newton-Schulz steps that make an update orthogonal.", at_least=1, belongs_to="name", when=("muon",)
    )
    ns_coefficients: Literal["original", "quintic", "polar_express"] = setting(
        "quintic",
        'Of muon, the polynomials of the steps: "original" is Jordan\'s, the same in each; "quintic" and '
        '"polar_express" (Amsel et al. 2025) have one a step, for five and eight.',
        belongs_to="name",
        when=("muon",),
    )
    adjust_lr: Literal["original", "match_rms_adamw", "rms_to_rms"] = setting(
        "match_rms_adamw",
        'Of muon, what multiplies lr for a matrix of n rows and m columns: "original" √max(1, n / m) (Jordan\'s), '
        '"match_rms_adamw" 0.2 √max(n, m), so that lr and decay are AdamW\'s (Liu et al. 2025), "rms_to_rms" √(n / m).',
        belongs_to="name",
        when=("muon",),
    )
    fallback_lr_scale: float = setting(
        1.0, "Of muon, how many times lr its AdamW gets.", above=0, belongs_to="name", when=("muon",)
    )
    fused: bool | None = setting(
        None,
        "One kernel for all parameters; unset means where torch has one for the device: on CPU and CUDA, adagrad's on "
        "CPU only. rmsprop and timm's have none.",
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
        'The decay after the warm-up. With a warm-up from 0, "linear" is ffcv-imagenet\'s triangle. "step" multiplies '
        'by `gamma` at each of `milestones`, or every `step_epochs`, both counted from the run\'s start. "polynomial" '
        'is (1 − progress) ** power. "one_cycle" rises along a cosine, too, as torch\'s OneCycleLR (Smith & Topin '
        "2018; the momentum is not cycled): `warmup_epochs` is its rise, pct_start · epochs there, 1 / start_factor "
        "its div_factor.",
    )
    warmup_epochs: float | None = setting(
        None,
        "How long the rate rises, linearly; may be a fraction; unset, 5, or a fifth of a run shorter than 25.",
        at_least=0,
    )
    start_factor: float = setting(0.01, "Of base_lr, where the warm-up begins.", at_least=0, at_most=1)
    decay_after_warmup: bool = setting(
        True,
        "Whether the decay begins where the warm-up ends (Goyal et al. 2017); false lets it run from the run's start, "
        "under the warm-up, after which the learning rate falls at once to where the decay is (timm's way).",
        belongs_to="name",
        when=("cosine", "linear", "polynomial"),
    )
    final_lr: float = setting(
        0.0,
        "Where the decay ends; a learning rate, not a factor.",
        at_least=0,
        belongs_to="name",
        when=("cosine", "linear", "polynomial", "one_cycle"),
    )
    milestones: tuple[float, ...] = setting(
        (), 'Epochs at which "step" multiplies.', above=0, belongs_to="name", when=("step",)
    )
    step_epochs: float = setting(
        0.0, 'Epochs from one multiplication of "step" to the next.', at_least=0, belongs_to="name", when=("step",)
    )
    gamma: float = setting(0.1, 'What "step" multiplies by.', above=0, belongs_to="name", when=("step",))
    power: float = setting(2.0, 'The power of "polynomial".', above=0, belongs_to="name", when=("polynomial",))

    def __post_init__(self) -> None:
        _check_name(self, "schedule")
        check(self)
        if any(a >= b for a, b in pairwise(self.milestones)):
            raise ValueError(f"milestones: {list(self.milestones)} must be above 0 and grow")
        if self.name == "step" and bool(self.milestones) == bool(self.step_epochs):
            raise ValueError('milestones: name = "step" needs either milestones or step_epochs')
        if not self.decay_after_warmup and self.warmup_epochs == 0:
            raise ValueError("decay_after_warmup: has no effect with warmup_epochs = 0; leave it out")


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """A moving average of the weights, which is validated and saved beside them."""

    decay: float = setting(0.0, "The decay of one step; 0 switches the average off.", at_least=0, below=1)
    warmup: bool = setting(
        True,
        "The decay is (1 + t) / (10 + t) while that is less, so that a short run forgets its first weights (as in "
        "Inception's training, TensorFlow's `num_updates`).",
    )

    def __post_init__(self) -> None:
        check(self)


def _check_name(section: LossConfig | OptimizerConfig | ScheduleConfig, kind: str) -> None:
    """Raises ValueError where the section's `name` is none of those that its annotation allows."""
    names = get_args(get_type_hints(type(section))["name"])
    if section.name not in names:
        raise ValueError(f"name: unknown {kind} {section.name!r}: {', '.join(names)}")
