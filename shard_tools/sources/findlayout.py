"""Detect from their names which directories of a tree are splits and which are classes; the result is a `Layout`.

Only directories with images count. If a tree can be read in two ways, that is an error. The message shows what was
found and the options to choose a reading.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from penstock.shard_tools.sources.layout import LAYOUT, NONE, Layout, Level, SplitDir, image_count, is_classless, look
from penstock.shard_tools.sources.naming import EXTENSIONS, few_of, is_image, is_nameless, split_in, split_rank


class Unclear(ValueError):
    """A tree that can be read in several ways."""


def unclear(root: Path, found: str, *readings: tuple[str, str]) -> Unclear:
    """The error for an ambiguous tree. `readings`: values of `--split-dirs`, and what each of them means."""
    choices = " or ".join(f"--split-dirs {shlex.quote(option)} ({meaning})" for option, meaning in readings)
    return Unclear(f"{root}: {found}; choose how to read this: {choices}")


def find_layout(root: Path) -> Layout:
    """Find the only way to read the tree. Raises ValueError if there is none, or more than one."""
    inside = ""
    while True:
        level = look(root / inside)
        if words := split_words(level.dirs):
            return _Splits(root, inside, level, words).layout()
        if len(level.dirs) != 1 or level.images:
            break
        inside += f"{level.dirs[0]}/"
    if inside:
        return _lone(root, inside, level)
    if not level.dirs:
        beside = f", but {image_count(len(level.images))} beside them" if level.images else ""
        raise ValueError(f"{root}: no images ({', '.join(EXTENSIONS)}) in its class directories{beside}; give {LAYOUT}")
    classes = [SplitDir("train", "")]
    _check_strays(root, "", level, classes)
    return Layout(classes)


def split_words(dirs: Iterable[str]) -> dict[str, str]:
    """Directory → split, for directories with the name of a split, train first.

    Such names are Training_Set; seg_train if there is also seg_test; or all names if each contains a split.
    """
    parsed = {name: split_in(name) for name in dirs}
    splits: dict[tuple[str, ...], set[str]] = {}
    for split, rest in parsed.values():
        if split:
            splits.setdefault(rest, set()).add(split)
    words = {name: split for name, (split, rest) in parsed.items() if split and (not rest or len(splits[rest]) > 1)}
    if len({split for split, _ in parsed.values()} - {""}) > 1 and all(split for split, _ in parsed.values()):
        words = {name: split for name, (split, _) in parsed.items()}
    return dict(sorted(words.items(), key=lambda item: split_rank(item[1])))


def own_splits(root: Path, directory: str, words: dict[str, str], meaning: str) -> list[tuple[str, str]]:
    """The reading that the subdirectories with split names are the splits, if they have class directories. words: these
    names, from `split_words`."""
    deep = [(name, split) for name, split in words.items() if look(root / directory / name).dirs]
    splits = {split: SplitDir(split, f"{directory}{name}/") for name, split in reversed(deep)}
    return [(spec(sorted(splits.values(), key=lambda s: split_rank(s.split))), meaning)] if splits else []


def _lone(root: Path, inside: str, level: Level) -> Layout:
    """Read a tree with a single directory, which may contain a single directory, and so on to `inside`. level: the
    content of `inside`."""
    top, *below = inside.rstrip("/").split("/")
    one_class = NONE, f"{top} is the one class"
    if level.is_container:
        others = spec([SplitDir("train", inside)]), f"{few_of(level.dirs)} are classes"
        raise unclear(root, f"all images are in subdirectories of {inside}", one_class, others)
    if below:
        others = spec([SplitDir("train", f"{PurePosixPath(inside).parent}/")]), f"{below[-1]} is the one class"
        raise unclear(root, f"all images are in {inside}", one_class, others)
    if is_nameless(top):
        raise unclear(root, f"all images are in {inside}, without class directories", one_class)
    return Layout([SplitDir("train", "")])


def _check_strays(root: Path, directory: str, level: Level, reading: list[SplitDir]) -> None:
    """Raises `Unclear` if there are many images beside the class directories. A few are skipped with a message."""
    if len(level.images) > len(level.dirs):
        found = (
            f"{directory or 'it'} has {image_count(len(level.images))} beside its directories ({few_of(level.images)})"
        )
        option = spec(reading) if reading != [SplitDir("train", "")] else NONE
        raise unclear(root, found, (option, "these images are skipped"))


@dataclass
class _Splits:
    """The directories at `inside`; some or all have the names of splits (`words`: directory → split)."""

    root: Path
    inside: str
    level: Level
    words: dict[str, str]

    def layout(self) -> Layout:
        """Find the layout. Raises ValueError if there is not exactly one reading."""
        self._check_all_are_splits()
        unlabelled = self._unlabelled()
        reading = self._reading(name for name in self.words if name != unlabelled)
        for name in self._deep:
            if name != unlabelled:
                self._check_classes(name, reading)
        return Layout(reading, self.inside, f"{self.inside}{unlabelled}/" if unlabelled else "")

    @cached_property
    def _levels(self) -> dict[str, Level]:
        return {name: look(self.root / here) for name, here in self._dirs.items()}

    @cached_property
    def _dirs(self) -> dict[str, str]:
        """The directory of each split, relative to the root: train/, or train/train/ if train/ contains only that."""
        dirs = {name: f"{self.inside}{name}/" for name in self.words}
        for name, here in dirs.items():
            level = look(self.root / here)
            if len(level.dirs) == 1 and not level.images and split_in(level.dirs[0]) == split_in(name):
                dirs[name] = f"{here}{level.dirs[0]}/"
        return dirs

    @cached_property
    def _deep(self) -> list[str]:
        """The splits that have class directories."""
        return [name for name in self.words if self._levels[name].dirs]

    def _reading(self, names: Iterable[str], inner: bool = False) -> list[SplitDir]:
        """The splits in these directories; if several directories are the same split, the first counts. With `inner`,
        descend through single directories to find the class directories."""
        found: dict[str, SplitDir] = {}
        for name in names:
            before = self._dirs[name]
            while inner and len((level := look(self.root / before)).dirs) == 1 and not level.images:
                if not look(self.root / before / level.dirs[0]).dirs:
                    break
                before += f"{level.dirs[0]}/"
            found.setdefault(self.words[name], SplitDir(self.words[name], before))
        return sorted(found.values(), key=lambda s: split_rank(s.split))

    def _check_all_are_splits(self) -> None:
        where, names = self.root, [f"{self.inside}{name}/" for name in self.words]
        others = [name for name in self.level.dirs if name not in self.words]
        classes = NONE, "they are all classes" if not self.inside else f"{self.inside.split('/')[0]} is the one class"
        reading = self._reading([n for n in self.words if n in self._deep or self.words[n] == "test"], inner=True)
        if others:
            readings = [classes, *self._within(others)]
            missing = next((s for s in ("train", "val") if s not in {split.split for split in reading}), "")
            alike = {key for name in self._deep for key in self._levels[name].dirs}
            if missing and len(others) == 1 and not alike.isdisjoint(look(where / self.inside / others[0]).dirs):
                other = SplitDir(missing, f"{self.inside}{others[0]}/")
                readings.append((spec([*reading, other]), f"{others[0]} is {missing}"))
            if missing != "train":
                readings.append((spec(reading), "the others are skipped"))
            elif reading and len(readings) == 1:
                train = SplitDir("train", self.inside)
                readings.append((spec([train, *reading]), "the others are classes of train"))
            raise unclear(where, f"{few_of(names)} can be splits by name, but {few_of(others)} cannot", *readings)
        if not self._deep:
            raise unclear(
                where,
                f"{few_of(names)}: images without class directories "
                f"(sort them into {names[0]}CLASS/, or {_table(self.root)})",
                classes,
            )
        for split in dict.fromkeys(self.words.values()):
            same = [name for name in self.words if self.words[name] == split]
            if len(same) > 1:
                both = f"{few_of(same)} all mean {split} (to use all of them, move their content into one)"
                raise unclear(where, both, classes, (spec(reading), "only the first of them is read"))
        for name in self.level.empty:
            split = split_in(name)[0] if not split_in(name)[1] else ""
            if split and split != "test" and split not in self.words.values():
                raise ValueError(
                    f"{where / self.inside / name}: no images ({', '.join(EXTENSIONS)}) in its class directories; "
                    f"give {self.inside}{name}/CLASS/IMAGE, or remove it"
                )
        _check_strays(where, self.inside, self.level, reading)

    def _within(self, others: list[str]) -> list[tuple[str, str]]:
        """The reading that the only directory without a split name contains the splits, if it does."""
        here, level = f"{self.inside}{others[0]}/", look(self.root / self.inside / others[0])
        while len(level.dirs) == 1 and not level.images and not split_words(level.dirs):
            here += f"{level.dirs[0]}/"
            level = look(self.root / here)
        words = split_words(level.dirs) if len(others) == 1 else {}
        return own_splits(self.root, here, words, f"{few_of(list(words))} in {here} are the splits")

    def _unlabelled(self) -> str:
        """The directory of test, if it has images but no classes. Raises ValueError for any other such split."""
        for name in self.words:
            if not self._is_classless(name):
                continue
            if self.words[name] == "test" and self._deep != [name]:
                return name
            if not self._levels[name].dirs or self._known:
                raise ValueError(f"{self.root / self.inside / name}: {self._without_classes(name)}")
        return ""

    @cached_property
    def _known(self) -> set[str]:
        """The classes of train."""
        return {key for name in self._deep if self.words[name] == "train" for key in self._levels[name].dirs}

    def _is_classless(self, name: str) -> bool:
        return is_classless(self.root / self._dirs[name], self._known)

    def _check_classes(self, name: str, reading: list[SplitDir]) -> None:
        """Check the content of a split's directory."""
        here, keys = self._dirs[name], self._levels[name].dirs
        _check_strays(self.root, here, self._levels[name], reading)
        as_classes = spec(reading), f"{few_of(keys)} {'are the classes' if len(keys) > 1 else 'is the class'}"
        if self._known and self._known.isdisjoint(keys):
            as_classes = spec([split for split in reading if split.before != here]), f"{name} is skipped"
        everywhere = {key for other in self._deep if other != name for key in self._levels[other].dirs}
        if len(keys) == 1 and not (keys[0] in everywhere and len(everywhere) > 1):
            inner = look(self.root / here / keys[0])
            if inner.is_container:
                deeper = spec(self._reading(self.words, inner=True)), "its subdirectories are the classes"
                readings = [as_classes]
                if not (self._known and self._known.isdisjoint([*keys, *inner.dirs])):
                    readings.append(deeper)
                raise unclear(self.root, f"all images of {here} are in subdirectories of {keys[0]}/", *readings)
            if is_nameless(keys[0]):
                found = f"all images of {here} are in {keys[0]}/, without class directories"
                raise unclear(self.root, f"{found} (sort them into {here}CLASS/, or {_table(self.root)})", as_classes)
        words = split_words(keys)
        if len(words) > 1:
            found = f"{few_of(list(words))} in {here} can also be splits by name"
            raise unclear(self.root, found, as_classes, *own_splits(self.root, here, words, "they are the splits"))

    def _without_classes(self, name: str) -> str:
        """What to do if validation images are not sorted, as in PyTorch's ImageNet layout before its script runs."""
        here, others = self.root / self.inside, self._reading(other for other in self._deep if other != name)
        paths = sorted({*here.iterdir(), *(here / name).iterdir()})
        labels = [
            str(path)
            for path in paths
            if not is_image(path.name)
            and path.is_file()
            and ("val" in path.name.lower() or "devkit" in path.name.lower())
        ]
        hint = f"their labels seem to be in {labels[0]}" if labels else "no file here seems to have their labels"
        ways = f"sort them into {name}/CLASS/, or {_table(self.root)}"
        if any("ILSVRC" in path.name for path in paths):
            ways += ", or pack the official archives as they are"
        skip = f"skip them with --split-dirs {shlex.quote(spec(others))}"
        return f"images without class directories ({hint}); {ways}, or {skip}"


def spec(splits: list[SplitDir]) -> str:
    return ",".join(split.spec() for split in splits)


def _table(root: Path) -> str:
    """What to do with images that are not in class directories."""
    tables = [path for path in sorted(root.iterdir()) if path.suffix.lower() in (".csv", ".tsv") and path.is_file()]
    there = f" (perhaps {few_of([path.name for path in tables])})" if tables else ""
    return f"list all images in a CSV file with the columns path, label and split{there}, and pack that"
