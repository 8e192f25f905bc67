"""Hugging Face Accelerate: `accelerate launch examples/accelerate_loop.py data/demo runs/accelerate`.

`prepare` returns the loader unchanged: the loader finds its own rank, and its batches are on the device already. Since
it is registered for checkpointing, it is saved and loaded with the rest.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torchvision.models import resnet18

import penstock

DATA, FOLDER = sys.argv[1], Path(sys.argv[2])
EPOCHS, BATCH, SIZE = 5, 64, 32  # BATCH: images in each process


def main() -> None:
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    train = penstock.open_loader(DATA, batch_size=BATCH, image_size=SIZE, device=accelerator.device)
    val = penstock.open_loader(DATA, "val", batch_size=BATCH, image_size=SIZE, device=accelerator.device)
    net = resnet18(num_classes=len(train.classes)).to(memory_format=torch.channels_last)
    model, optimizer, train, val = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=1e-3), train, val)
    accelerator.register_for_checkpointing(train)
    if FOLDER.exists():
        accelerator.load_state(str(FOLDER))

    for epoch in range(train.epoch, EPOCHS):
        model.train()
        for images, labels, _ in train:
            with accelerator.autocast():
                loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.save_state(str(FOLDER))
        model.eval()
        right = torch.zeros((), device=accelerator.device)
        with torch.no_grad():
            for images, labels, _ in val:  # not `model`: a process may have fewer batches than others
                right += (net(images).argmax(1) == labels).sum()
        top1 = accelerator.reduce(right).item() / len(val.dataset)
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}, top-1 {top1:.3f}")


if __name__ == "__main__":
    main()
