"""Interpret file and directory names (split, image, or junk), and make the class keys of numeric labels."""

import re

from penstock.shard_tools.sources.imagenet import wnids_of

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm")
MAX_IGNORED = 1000
MAX_CLASSES = 1_000_000  # numeric class keys have six digits
SPLIT_WORDS = {
    "train": "train", "training": "train", "trn": "train", "trainval": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val", "evaluation": "val",
    "test": "test", "tests": "test", "testing": "test", "tst": "test",
}  # fmt: skip
FILLERS = (
    "set", "sets", "split", "data", "dataset", "dir", "folder", "file", "files", "sample", "samples", "image", "images",
    "img", "imgs", "picture", "pictures", "photo", "photos", "jpg", "jpeg", "png", "x", "px",
)  # fmt: skip
NAMELESS = {*FILLERS, "all", "unknown", "unlabeled", "unlabelled"}  # names of directories that are not classes
JOINED = re.compile(f"({'|'.join(SPLIT_WORDS)})({'|'.join(FILLERS)})")  # trainset, testdata
JUNK = {
    "@eadir", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found",
}  # fmt: skip


class Ignored(list[str]):
    """Names that a source skipped; it keeps only the first `MAX_IGNORED`."""

    def append(self, name: str) -> None:
        if len(self) < MAX_IGNORED:
            super().append(name)


def split_of(path: str) -> str:
    """The split of a container, from the last word of its path that is in `SPLIT_WORDS`. Words are runs of letters.

    For example, `imagenet1k-validation-07.tar` and `val/07.tar` belong to val. A path without such a word belongs to
    train.
    """
    words = [split for word in re.findall(r"[a-z]+", path.lower()) if (split := _split_word(word))]
    return words[-1] if words else "train"


def split_in(name: str) -> tuple[str, tuple[str, ...]]:
    """The split that a directory's name indicates, and the words of the name that are unrelated to the split.

    ("train", ()) for Training_Set or train2017, ("train", ("seg",)) for seg_train, ("", ("cat",)) for cat. A name with
    two splits indicates none.
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    splits = [split for word in words if (split := _split_word(word))]
    rest = tuple(word for word in words if not _split_word(word) and word not in FILLERS)
    return (splits[0], rest) if len(splits) == 1 else ("", tuple(words))


def is_nameless(name: str) -> bool:
    """Whether a directory's name is not a class name: images, data1, 0, or the name of a split."""
    split, words = split_in(name)
    return bool(split and not words) or set(words) <= NAMELESS


def _split_word(word: str) -> str:
    joined = JOINED.fullmatch(word)
    return SPLIT_WORDS.get(joined[1] if joined else word, "")


def split_rank(split: str) -> tuple[int, str]:
    """Sort key for splits: train, val, test, then others by name."""
    order = list(dict.fromkeys(SPLIT_WORDS.values()))
    return order.index(split) if split in order else len(order), split


def is_image(name: str) -> bool:
    """Whether a name, or a path with "/", is an image file that is not in a directory that `is_junk`."""
    if not name.lower().endswith(EXTENSIONS):
        return False
    return not any(is_junk(part) for part in name.split("/") if part not in (".", ".."))


def is_junk(name: str) -> bool:
    """Whether a file or directory does not belong to the data: it is hidden, or belongs to the operating system
    (thumbnails, resource forks, bins)."""
    return name.startswith(".") or name.lower() in JUNK


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8; JSON may hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def numbered_key(label: int) -> str:
    """The class key of a label without a better key. Sorted keys have the order of the numbers."""
    return f"{label:06d}"


def numbered_keys(count: int) -> list[str]:
    """The class keys of labels 0 … count − 1."""
    return [numbered_key(label) for label in range(count)]


def check_number(label: int, where: str) -> None:
    """Raises ValueError for a label so large that it must be an id, not a class number."""
    if label >= MAX_CLASSES:
        raise ValueError(
            f"{where}: label {str(label)[:20]} would make more than {MAX_CLASSES:,} classes; number the classes from "
            "0, or use their names as labels"
        )


def numbered_classes(names: list[str]) -> dict[str, str]:
    """Class key → readable name for labels 0, 1, …. Keys are wnids if these are ImageNet-1k's names, otherwise
    `numbered_key`s.

    In both cases, sorting the keys keeps the source's label numbers; sorting names would not.
    """
    return dict(zip(wnids_of(names) or numbered_keys(len(names)), names, strict=True))


def few_of(names: list[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
