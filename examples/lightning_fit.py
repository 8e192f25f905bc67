"""Lightning's Trainer: `python examples/lightning_fit.py data/demo runs/lightning`. Stop it, and start it again.

Lightning saves the loaders' states in its checkpoints and loads them. So a run resumes in the middle of an epoch, with
the same samples. With `limit_train_batches`, call `train.set_epoch(self.current_epoch)` in `on_train_epoch_start`.
"""

import sys

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torchvision.models import resnet18

import penstock

DATA, FOLDER = sys.argv[1], sys.argv[2]
EPOCHS, BATCH, SIZE, SAVE_EVERY = 5, 64, 32, 10  # BATCH: images on each GPU


class Classifier(lightning.LightningModule):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = resnet18(num_classes=num_classes)

    def training_step(self, batch: penstock.Batch, batch_idx: int) -> Tensor:
        images, labels, ids = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("loss", loss, batch_size=len(ids), prog_bar=True)
        return loss

    def validation_step(self, batch: penstock.Batch, batch_idx: int) -> None:
        images, labels, ids = batch
        right = (self.net(images).argmax(1) == labels).float()
        self.log("top1", right.mean(), batch_size=len(ids), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    lightning.seed_everything(0)
    train = penstock.open_loader(DATA, batch_size=BATCH, image_size=SIZE)
    val = penstock.open_loader(DATA, "val", batch_size=BATCH, image_size=SIZE)
    saver = ModelCheckpoint(FOLDER, save_last=True, every_n_train_steps=SAVE_EVERY)
    trainer = lightning.Trainer(max_epochs=EPOCHS, default_root_dir=FOLDER, callbacks=[saver], log_every_n_steps=10)
    trainer.fit(Classifier(len(train.classes)), train, val, ckpt_path="last")


if __name__ == "__main__":
    main()
