"""A plain PyTorch training loop: `python examples/bare_loop.py data/demo`, or torchrun with several GPUs.

The loader shuffles, decodes, crops and flips, on the GPU if there is one, and gives each rank its share.
"""

import os
import sys

import torch
import torch.nn.functional as F
from torchvision.models import resnet18

import penstock

DATA, EPOCHS, BATCH, SIZE = sys.argv[1], 5, 64, 32  # BATCH: images in each rank


def main() -> None:
    ranks = int(os.environ.get("WORLD_SIZE", 1))  # torchrun's
    if ranks > 1:
        torch.distributed.init_process_group()
    train = penstock.open_loader(
        DATA, batch_size=BATCH, image_size=SIZE, augment=penstock.AugmentConfig(scale=(0.5, 1))
    )
    val = penstock.open_loader(DATA, "val", batch_size=BATCH, image_size=SIZE, resize_size=SIZE)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    net = resnet18(num_classes=len(train.classes)).to(device, memory_format=torch.channels_last)
    model = torch.nn.parallel.DistributedDataParallel(net) if ranks > 1 else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=EPOCHS * len(train))
    for epoch in range(EPOCHS):
        model.train()
        for images, labels, _ in train:  # (64, 3, 32, 32) and (64,), on the device; each `for` is the next epoch
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        model.eval()
        right = torch.zeros((), device=device)
        with torch.no_grad():
            for images, labels, _ in val:  # not `model`: each image comes once, so a rank may have fewer batches
                right += (net(images).argmax(1) == labels).sum()
        if ranks > 1:
            torch.distributed.all_reduce(right)
        if os.environ.get("RANK", "0") == "0":
            print(f"epoch {epoch}: loss {loss.item():.3f}, top-1 {right.item() / len(val.dataset):.3f}")


if __name__ == "__main__":
    main()
