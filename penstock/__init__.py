"""Penstock's public interface: a data loader for any training loop.

    import penstock

    loader = penstock.open_loader("data/shards", batch_size=256)
    for epoch in range(90):
        loader.set_epoch(epoch)
        for images, labels, ids in loader:
            ...

The names in this module are stable between minor versions. The packages inside (`penstock.pipeline`, …) may change. A
name is imported at first use, so `import penstock` alone does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.loader import ShardLoader, open_loader
    from penstock.pipeline.augment import AugmentConfig
    from penstock.pipeline.batch import Batch
    from penstock.pipeline.config import DataConfig
    from penstock.shards.format import ShardSet

_WHERE = {
    "AugmentConfig": "penstock.pipeline.augment",
    "Batch": "penstock.pipeline.batch",
    "DataConfig": "penstock.pipeline.config",
    "ShardLoader": "penstock.loader",
    "ShardSet": "penstock.shards.format",
    "open_loader": "penstock.loader",
}
__all__ = ["AugmentConfig", "Batch", "DataConfig", "ShardLoader", "ShardSet", "__version__", "open_loader"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("penstock")
    if name not in _WHERE:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
