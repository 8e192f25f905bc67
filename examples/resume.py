"""Resume in the middle of an epoch: `python examples/resume.py data/demo checkpoint.pt`. Stop it, and start it again.

It continues with the next batch. Samples and augmentation are the same as in a run that never stopped. The number of
ranks may change if BATCH times that number stays the same. The state is in `loader.state_dict()`.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.models import resnet18

import penstock

DATA, FILE = sys.argv[1], Path(sys.argv[2])
EPOCHS, BATCH, SIZE, SAVE_EVERY = 5, 64, 32, 10


def main() -> None:
    torch.manual_seed(0)
    loader = penstock.open_loader(DATA, batch_size=BATCH, image_size=SIZE)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = resnet18(num_classes=len(loader.classes)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if FILE.exists():
        state = torch.load(FILE, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        print(f"resumed at {state['loader']['position']:,} samples of epoch {loader.epoch}")

    for epoch in range(loader.epoch, EPOCHS):  # the first one may be the rest of an epoch
        for step, (images, labels, ids) in enumerate(loader, start=1):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print(f"epoch {epoch} loss {loss.item():.6f} ids {ids.tolist()}", flush=True)
            if step % SAVE_EVERY == 0:
                save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()})


def save(state: dict[str, object]) -> None:
    """Save atomically: if the process is killed, the previous file stays."""
    part = FILE.with_suffix(".part")
    torch.save(state, part)
    part.replace(FILE)


if __name__ == "__main__":
    main()
