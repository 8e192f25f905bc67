"""`examples/finetune.sh`: from a folder of photos to a fine-tuned network, with the installed command."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torchvision.models import resnet18

EXAMPLES = Path(__file__).parents[2] / "examples"
NUM_TRAIN = 90


def test_finetune_on_photos(image_tree: Path, tmp_path: Path) -> None:
    torch.save(resnet18(num_classes=1000).state_dict(), tmp_path / "weights.pth")
    photos = image_tree / "train"
    sets = {"model.name": "resnet18", "model.pretrained": tmp_path / "weights.pth", "data.image_size": 32,
            "data.val_image_size": 32, "data.val_resize_size": 36, "train.epochs": 1}  # fmt: skip
    options = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", EXAMPLES / "finetune.sh", photos, *options, "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fc is reinitialised, 1000 → 3 classes" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.startswith(f"{photos}")]) >= NUM_TRAIN
    assert (tmp_path / "runs" / "photos" / "model.safetensors").exists()
