"""Hints for unknown keys: the key that is meant, found by spelling and by the names that other trainers use."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

# The names of timm, torchvision's references, Lightning, Hugging Face and Ultralytics for a key (with `_` for `-`). A
# name that is itself the last word of a key needs no entry.
SYNONYMS = {
    "augment.auto": "aa auto_augment autoaugment rand_augment randaugment trivial_augment",
    "augment.brightness": "color_jitter colour_jitter jitter",
    "augment.cutmix": "cutmix_alpha",
    "augment.erase": "reprob random_erase random_erasing erasing",
    "augment.hflip": "fliplr flip horizontal_flip random_flip",
    "augment.mixup": "mixup_alpha",
    "augment.repeats": "aug_repeats ra_sampler repeated_aug",
    "augment.scale": "crop_scale",
    "augment.vflip": "flipud vertical_flip",
    "data.hw_decoder_load": "hw_decoder",
    "data.image_size": "crop_size imgsz img_size input_size resolution size train_crop_size",
    "data.path": "data data_dir data_path dataset root",
    "data.prefetch": "prefetch_factor prefetch_queue_depth",
    "data.threads": "dataloader_num_workers j num_threads num_workers workers",
    "data.val_image_size": "eval_size test_size val_crop_size val_size",
    "data.val_resize_size": "crop_pct crop_ratio resize_size val_resize",
    "ema.decay": "ema ema_decay model_ema model_ema_decay",
    "loss.bce_target_threshold": "bce_target_thresh",
    "loss.label_smoothing": "ls smoothing",
    "loss.name": "criterion loss",
    "model.channels_last": "memory_format",
    "model.compile": "torchcompile torch_compile",
    "model.dropout": "drop drop_rate",
    "model.name": "arch architecture backbone model model_name net network",
    "model.pretrained": "checkpoint_path finetune init initial_checkpoint pretrain pretrained_weights weights",
    "model.stochastic_depth": "drop_path drop_path_rate",
    "model.sync_batch_norm": "sync_batchnorm sync_bn",
    "optimizer.betas": "beta1 beta2 opt_betas",
    "optimizer.eps": "epsilon opt_eps",
    "optimizer.lr": "base_lr blr init_lr initial_lr learning_rate lr0 max_lr",
    "optimizer.name": "opt optim optimizer",
    "optimizer.weight_decay": "decay l2 wd",
    "schedule.final_lr": "eta_min end_lr lr_min lrf min_lr",
    "schedule.milestones": "decay_milestones lr_steps",
    "schedule.name": "lr_schedule lr_scheduler lr_scheduler_type sched schedule scheduler",
    "schedule.power": "poly_power",
    "schedule.start_factor": "lr_warmup_decay warmup_lr",
    "schedule.step_epochs": "decay_epochs lr_step_size step_size",
    "schedule.warmup_epochs": "lr_warmup_epochs num_warmup_steps warmup warmup_ratio warmup_steps",
    "train.accumulation": "accumulate_grad_batches grad_accum grad_accum_steps gradient_accumulation_steps",
    "train.checkpoint_every": "checkpoint_interval save_every save_freq save_interval save_steps",
    "train.clip_grad_norm": "clip clip_grad grad_clip gradient_clip_val max_grad_norm",
    "train.epochs": "max_epochs n_epochs num_epochs num_train_epochs",
    "train.eval_every": "check_val_every_n_epoch eval_freq eval_interval eval_steps val_every val_interval",
    "train.global_batch_size": "b batch batch_size bs global_batch per_device_train_batch_size train_batch_size",
    "train.keep_checkpoints": "checkpoint_hist save_total_limit",
    "train.log_every": "log_freq log_interval logging_steps print_freq",
    "train.precision": "amp bf16 dtype fp16 half mixed_precision native_amp",
    "train.seed": "random_seed",
    "train.wandb": "log_wandb use_wandb wandb_project",
}
SECTIONS = {
    "augment": "aug augmentation augmentations transform transforms",
    "data": "dataloader dataset loader",
    "ema": "model_ema",
    "loss": "criterion",
    "model": "arch net network",
    "optimizer": "optim optimiser",
    "phases": "progressive resizing",
    "schedule": "lr_schedule lr_scheduler sched scheduler",
    "train": "run trainer training",
}


def keys_like(word: str, keys: Sequence[str]) -> list[str]:
    """The dotted `keys` that `word`, the last word of a key, may mean: keys that end with it (`optimizer.lr` for `lr`),
    and keys that have it as a synonym."""
    word = word.lower().replace("-", "_")
    return [key for key in keys if word == _last(key) or word in SYNONYMS.get(key, "").split()]


def unknown_key(key: str, keys: Sequence[str], where: str) -> ValueError:
    """The error for `key`, which is not one of the dotted `keys`. `where`: where it was given."""
    section, _, name = key.rpartition(".")
    if any(known.startswith(f"{key}.") for known in keys):
        perhaps = "".join(f", perhaps {known}" for known in keys_like(key, keys))
        return ValueError(f"{where}: {key} is a section: expected {key}.key=value{perhaps}")
    in_section = [known for known in keys if known.rpartition(".")[0] == section]
    # Within a section compare the last words only: the common prefix would make every key look similar.
    near = keys_like(name, keys)
    near = [known for known in near if known in in_section] or near
    if not near and section and in_section:
        near = [f"{section}.{word}" for word in get_close_matches(name, map(_last, in_section), n=1)]
    elif not near:
        near = get_close_matches(key, keys, n=1)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif section and in_section:
        hint = f"valid keys are {', '.join(in_section)}"
    else:
        hint = f"valid sections are {', '.join(_firsts(keys))}"
    return ValueError(f"{where}: unknown key {key}: {hint}")


def unknown_section(name: str, keys: Sequence[str], where: str) -> ValueError:
    """The error for a section that does not exist."""
    sections = _firsts(key for key in keys if "." in key)
    plain = name.lower().replace("-", "_")
    near = [section for section in sections if plain in SECTIONS.get(section, "").split()]
    near = near or get_close_matches(plain, sections, n=1)
    hint = f"did you mean the section [{near[0]}]?" if near else f"valid sections are {', '.join(sections)}"
    return ValueError(f"{where}: unknown key {name}: {hint}")


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _firsts(keys: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(key.partition(".")[0] for key in keys))
