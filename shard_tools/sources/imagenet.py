"""The classes of ImageNet-1k: wnid and readable name, from the bundled `imagenet_classes.tsv`, in label order.

The wnids are the sorted 1,000 low-level synsets of ILSVRC 2012. The names are torchvision's; they are unique.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

NAME_AGREEMENT = 0.9  # lists of ImageNet's names differ in a few words ("crane bird"), other datasets in most


@cache
def imagenet_classes() -> dict[str, str]:
    """wnid → readable name, 1,000 of them, sorted by wnid."""
    text = Path(__file__).with_name("imagenet_classes.tsv").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


def imagenet_names(keys: Iterable[str]) -> dict[str, str]:
    """Readable names of the class keys that are ImageNet-1k wnids."""
    known = imagenet_classes()
    return {key: known[key] for key in keys if key in known}


def wnids_of(names: Sequence[str]) -> list[str] | None:
    """The wnids, if `names` are ImageNet-1k's for labels 0…999 ("tench", or "tench, Tinca tinca"), otherwise None."""
    known = imagenet_classes()
    if len(names) != len(known):
        return None
    agree = sum(
        given.partition(",")[0].strip().lower() == name.lower()
        for given, name in zip(names, known.values(), strict=True)
    )
    return list(known) if agree >= NAME_AGREEMENT * len(known) else None
