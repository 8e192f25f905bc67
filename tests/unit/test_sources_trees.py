"""Directory trees: the directories for splits and classes, refusals, `--split-dirs`, and links."""

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from penstock.shard_tools.listing import write_listing
from penstock.shard_tools.rejected import BadImages
from penstock.shard_tools.sources import SourceOptions, open_source
from penstock.shard_tools.sources.base import SourceImage, Unusable
from penstock.shard_tools.sources.naming import is_image, split_in
from penstock.shard_tools.subset import Subset

Found = dict[str, list[str]]  # split → "CLASS/FILE" of its images, sorted


def make(root: Path, names: list[str]) -> Path:
    """Make files; "train/{a,b}/1.jpg" makes two. Only their names matter."""
    for name in names:
        braces = re.search(r"{(.*?)}", name)
        if braces:
            make(root, [name.replace(braces[0], choice, 1) for choice in braces[1].split(",")])
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def read(root: Path, split_dirs: str = "") -> tuple[Found, list[str], str]:
    """The listed images, the ignored names, and the messages."""
    source = open_source(root, "imagefolder", SourceOptions(split_dirs=split_dirs))
    found: Found = {}
    for image in source.images(root):
        assert Path(image.place.file).stat().st_size == image.size_bytes
        found.setdefault(image.split, []).append(f"{image.key}/{image.name.rpartition('/')[2]}")
    return {split: sorted(names) for split, names in found.items()}, sorted(source.ignored), source.explained


AB = ["a/1.jpg", "b/1.jpg"]

READ = {
    "capitals": (["Train/{a,b}/1.jpg", "TEST/{a,b}/1.jpg"], ["train", "test"]),
    "low and capital": (["train/{a,b}/1.jpg", "Val/{a,b}/1.jpg"], ["train", "val"]),
    "sets": (["training_set/{a,b}/1.jpg", "validation-set/{a,b}/1.jpg"], ["train", "val"]),
    "spaces": (["Training Images/{a,b}/1.jpg", "Test Images/{a,b}/1.jpg"], ["train", "test"]),
    "camels": (["TrainingSet/{a,b}/1.jpg", "testData/{a,b}/1.jpg"], ["train", "test"]),
    "years": (["train2017/{a,b}/1.jpg", "val2017/{a,b}/1.jpg"], ["train", "val"]),
    "sizes": (["train_64x64/{a,b}/1.jpg", "valid_64x64/{a,b}/1.jpg"], ["train", "val"]),
    "a common name": (["seg_train/{a,b}/1.jpg", "seg_test/{a,b}/1.jpg"], ["train", "test"]),
    "joined": (["trainset/{a,b}/1.jpg", "evalset/{a,b}/1.jpg"], ["train", "val"]),
    "other words beside": (["train_new/{a,b}/1.jpg", "val_old/{a,b}/1.jpg"], ["train", "val"]),
    "doubled": (["{train/train,test/test}/{a,b}/1.jpg"], ["train", "test"]),
    "doubled, flat test": (["train_set/train_set/{a,b}/1.jpg", "tests/tests/{1,2}.jpg"], ["train"]),
    "one split": (["train/{a,b}/1.jpg"], ["train"]),
    "wrapped": (["data/{train,val}/{a,b}/1.jpg", "README.md"], ["train", "val"]),
    "wrapped twice": (["x/y/{Train,Val}/{a,b}/1.jpg", "x/LICENSE", "__MACOSX/x/._y.jpg"], ["train", "val"]),
    "wrapped beside labels": (["images/{train,val}/{a,b}/1.jpg", "labels/{train,val}/1.txt"], ["train", "val"]),
    "classes": (["{a,b}/1.jpg"], ["train"]),
    "deep classes": (["{a,b}/images/1.jpg"], ["train"]),
    "a system's directories": (["{a,b}/1.jpg", "{a/@eaDir,__MACOSX,.cache,lost+found}/1.jpg", "a/._1.jpg"], ["train"]),
}


@pytest.mark.parametrize(("names", "splits"), READ.values(), ids=READ)
def test_trees_that_are_read_in_one_way(tmp_path: Path, names: list[str], splits: list[str]) -> None:
    found, _, explained = read(make(tmp_path / "s", names))
    assert found == dict.fromkeys(splits, AB)
    assert all(split in explained.lower() for split in splits) or splits == ["train"]


def test_a_wrapping_directory_and_what_lies_beside_it_are_said(tmp_path: Path) -> None:
    make(tmp_path, ["x/data/{train,val}/{a,b}/1.jpg", "x/README.md", "labels.csv", "x/data/train/list.txt"])
    _, ignored, explained = read(tmp_path)
    assert explained == "a directory tree: train/CLASS/IMAGE, val/CLASS/IMAGE, inside x/data/"
    assert ignored == ["labels.csv", "x/README.md", "x/data/train/list.txt"]


VEHICLES = ["bullet train/1.jpg", "test tube/1.jpg", "trainers/1.jpg", "valley/1.jpg", "development/1.jpg"]


def test_classes_with_such_words_are_classes(tmp_path: Path) -> None:
    assert read(make(tmp_path / "a", VEHICLES))[0] == {"train": sorted(VEHICLES)}
    nested = ["train/{bus,train,car}/1.jpg", "val/{bus,train,car}/1.jpg"]
    assert list(read(make(tmp_path / "b", nested))[0]) == ["train", "val"]
    coarse = ["vehicle/{bus,car,train}/1.jpg", "animal/{cat,dog}/2.jpg"]
    assert len(read(make(tmp_path / "c", coarse))[0]["train"]) == 5


REFUSED = {
    "flat": (["train/{1,2}.jpg", "test/{1,2}.jpg"], "'train/', 'test/': images without class directories"),
    "flat, one": (["train/{1,2}.jpg"], "'train/': images without class directories"),
    "flat, wrapped": (["data/{train,test}/{1,2}.jpg"], "'data/train/', 'data/test/': images without class"),
    "a class called train": (
        ["bus/city/1.jpg", "car/red/2.jpg", "train/{steam,electric}/1.jpg"],
        "but 'bus', 'car' cannot",
    ),
    "a flat class called train": (["{bus,car,train}/1.jpg"], "'train/' can be splits by name, but 'bus', 'car' cannot"),
    "classes and a split": (["{a,b}/1.jpg", "test/{a,b}/1.jpg"], "'test/' can be splits by name, but 'a', 'b' cannot"),
    "classes and a flat split": (["{a,b}/1.jpg", "test/1.jpg"], "'test/' can be splits by name, but 'a', 'b' cannot"),
    "another directory": (["{train,Val}/{a,b}/1.jpg", "extra/{a,b}/1.jpg"], "'extra' cannot"),
    "another of a common name": (["seg_{train,test}/{a,b}/1.jpg", "seg_pred/1.jpg"], "'seg_pred' cannot"),
    "two of a split": (["{train,val,Validation}/{a,b}/1.jpg"], "'Validation', 'val' all mean val"),
    "domains": (["train{A,B}/{a,b}/1.jpg", "test{A,B}/{a,b}/1.jpg"], "'trainA', 'trainB' all mean train"),
    "one class with more below": (["photos/{a,b}/1.jpg"], "all images are in subdirectories of photos/"),
    "one class, deep": (["photos/2024/{a,b}/1.jpg", "README"], "all images are in subdirectories of photos/2024/"),
    "one class with one below": (["cat/images/1.jpg"], "all images are in cat/images/"),
    "one class with a cover": (["photos/{a,b}/1.jpg", "photos/cover.jpg"], "in subdirectories of photos/"),
    "no class": (["images/{1,2}.jpg"], "all images are in images/, without class directories"),
    "no class in splits": (["{train,val}/images/{1,2}.jpg"], "all images of train/ are in images/, without class"),
    "doubled flat splits": (["{train/train,test/test}/{1,2}.jpg"], "'train/', 'test/': images without class"),
    "flat, all told": (["train_new/{1,2}.jpg", "val_old/{1,2}.jpg"], "'train_new/', 'val_old/': images without class"),
    "a detector's": (["{train,val}/images/1.jpg", "{train,val}/labels/1.txt"], "without class directories (sort them"),
    "unknown test": (["{a,b}/1.jpg", "test/images/1.jpg"], "'test/' can be splits by name, but 'a', 'b' cannot"),
    "one of other words": (["{train,held-out}/{a,b}/1.jpg"], "train=train,val=held-out (held-out is val)"),
    "two words": (["{train_val,test}/{a,b}/1.jpg"], "test=test,train=train_val (train_val is train)"),
    "flat splits in a split": (["train/{valid,test}/1.jpg"], "'valid', 'test' in train/ can also be splits by name"),
    "data sets": (["{x,y}/{train,val}/{a,b}/1.jpg"], "train=x/train,val=x/val (x is a separate dataset"),
    "splits around splits": (
        ["N(x)/N(x)/{train,valid}/{a,b}/1.jpg", "test/test/1.jpg"],
        "'train=N(x)/N(x)/train,val=N(x)/N(x)/valid' ('train', 'valid' in N(x)/N(x)/ are the splits)",
    ),
    "wrapped test": (["{train,val}/{a,b}/1.jpg", "test/images/{x,y}/1.jpg"], "train=train,val=val (test is skipped)"),
    "flat, three": (
        ["{bullet train,freight train,test tube}/1.jpg"],
        "'bullet train/', 'freight train/', 'test tube/'",
    ),
    "repeated in one split": (["train/{x,y}/{a,b}/1.jpg"], "train=train/x (or similar: 'a', 'b' are the classes)"),
    "wrapped classes in splits": (["{train,val}/photos/{a,b}/1.jpg"], "in subdirectories of photos/"),
    "splits in a split": (["train/{train,val}/{a,b}/1.jpg"], "'train', 'val' in train/ can also be splits by name"),
    "splits in classes": (["{cat,dog}/{train,test}/{1,2}.jpg"], "cat/ has 'train', 'test', which can be splits"),
    "splits in one class": (["cat/{Training Set,Test Set}/1.jpg", "dog/1.jpg"], "cat/ has 'Training Set', 'Test Set'"),
    "splits deep in classes": (["cat/x/{train,val}/a/1.jpg", "dog/1.jpg"], "cat/x/ has 'train', 'val'"),
    "splits of other words": (["{Lernen,Pruefung}/{a,b}/1.jpg"], "'a', 'b' repeat in 'Lernen/', 'Pruefung/'"),
    "the like, not all": (["{x,y,z}/{a,b}/1.jpg", "z/c/1.jpg", "w/1.jpg"], "'a', 'b' repeat"),
    "the like, deeper": (["{x,y}/images/{a,b}/1.jpg"], "'a', 'b' repeat in 'x/images/', 'y/images/'"),
    "images beside classes": (["{1,2,3}.jpg", "{a,b}/1.jpg"], "it has 3 images beside its directories"),
    "images beside classes of a split": (["train/{a,b}/1.jpg", "train/{1,2,3}.jpg"], "train/ has 3 images beside"),
    "images beside splits": (["{train,val}/{a,b}/1.jpg", "{1,2,3}.jpg"], "it has 3 images beside its directories"),
}


@pytest.mark.parametrize(("names", "message"), REFUSED.values(), ids=REFUSED)
def test_trees_that_can_be_read_in_several_ways(tmp_path: Path, names: list[str], message: str) -> None:
    """Each option that the refusal names reads the tree: nothing twice, and what it leaves out is named."""
    root = make(tmp_path / "s", names)
    every = Counter(path.name for path in root.rglob("*.jpg"))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(root)
    assert "\n" not in str(caught.value)
    options = [shlex.split(rest)[0] for rest in str(caught.value).split("--split-dirs ")[1:]]
    assert options
    for option in options:
        found, ignored, _ = read(root, option)
        images = Counter(name.rpartition("/")[2] for names in found.values() for name in names)
        assert images <= every
        assert images == every or ignored, option


def test_what_each_reading_gives(tmp_path: Path) -> None:
    reversed_tree = make(tmp_path / "reversed", ["{cat,dog}/{train,test}/1.jpg", "{cat,dog}/extra/{1,2}.jpg"])
    found, ignored, explained = read(reversed_tree, "train=*/train,test=*/test")
    assert found == {"train": ["cat/1.jpg", "dog/1.jpg"], "test": ["cat/1.jpg", "dog/1.jpg"]}
    assert ignored == ["cat/extra/ (2 images)", "dog/extra/ (2 images)"]
    assert explained == "a directory tree: CLASS/train/IMAGE as train, CLASS/test/IMAGE as test"
    assert read(reversed_tree, "none")[0] == {"train": [f"{c}/{i}.jpg" for c in ("cat", "dog") for i in "1112"]}
    mixed = make(tmp_path / "mixed", ["{a,b}/1.jpg", "held out/{a,b}/1.jpg", "x/y, z/{a,b}/1.jpg"])
    found, ignored, _ = read(mixed, f"train=., val=held out,test={mixed}/x/y, z/")
    assert found == dict.fromkeys(["train", "val", "test"], AB)
    assert ignored == []
    vehicles = make(tmp_path / "vehicles", ["bus/1.jpg", "train/{steam,electric}/1.jpg"])
    assert read(vehicles, "NONE")[0] == {"train": ["bus/1.jpg", "train/1.jpg", "train/1.jpg"]}
    found, ignored, _ = read(vehicles, "train=train")
    assert (found, ignored) == ({"train": ["electric/1.jpg", "steam/1.jpg"]}, ["bus/ (1 image)"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("Train", "'Train' is not SPLIT=DIRECTORY; write"),
        ("train=", "'train=' is not SPLIT=DIRECTORY"),
        ("a b=train", "'a b=train' is not SPLIT=DIRECTORY"),
        ("train=nowhere", "has no directory 'nowhere'; choose from 'a', 'train', 'val'"),
        ("train=../s/train", "is not a directory inside"),
        ("train=/train", "is not a directory inside"),
        ("train=*/x/*", "at most one \\* for the classes"),
        ("train=train,train=val", "has 'train' twice"),
        ("train=train,val=train", "train/a would be in train and in val"),
        ("train=*,val=*/b", "a/b would be in train and in val"),
        ("train=a", "no images .* in its class directories"),
    ],
)
def test_split_dirs_that_do_not_fit(tmp_path: Path, option: str, message: str) -> None:
    root = make(tmp_path / "s", ["{train,val}/{a,b}/1.jpg", "a/b/x.txt"])
    with pytest.raises(ValueError, match=message) as caught:
        read(root, option)
    assert "\n" not in str(caught.value)


def test_test_images_without_labels_are_left_out_with_a_line(tmp_path: Path) -> None:
    trees = {
        "flat": ["{train,val}/{a,b}/1.jpg", "Test/{1,2}.jpg"],
        "in images": ["{train,val}/{a,b}/1.jpg", "Test/images/{1,2}.jpg"],
        "unknown": ["{train,val}/{a,b}/1.jpg", "Test/unknown/{1,2}.jpg"],
    }
    for name, names in trees.items():
        for option in ("", "train=train,val=val,test=Test") if name == "flat" else ("",):
            found, ignored, explained = read(make(tmp_path / name, names), option)
            assert found == {"train": AB, "val": AB}, name
            assert ignored == ["Test/ (2 images, no labels)"]
            assert explained.endswith("Test/ has no class directories and is skipped")
    with pytest.raises(ValueError, match="val: images without class directories"):
        read(make(tmp_path / "val", ["{train,test}/{a,b}/1.jpg", "val/images/1.jpg"]))


def test_names_of_splits_and_images() -> None:
    for name, split in {
        "Training_Set": "train", "train2017": "train", "TestImages": "test", "test (1)": "test", "trainval": "train",
        "EVAL": "val", "seg_train": "", "test tube": "", "train_val": "", "trainers": "", "devices": "", "1": "",
    }.items():  # fmt: skip
        word, rest = split_in(name)
        assert (word if not rest else "") == split, name
    for path, image in {
        "a.jpg": True, "./a/b.JPEG": True, "../a.png": True, "a.txt": False, "._a.jpg": False,
        "__MACOSX/x/a.jpg": False,         "x/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg": False, ".cache/a.jpg": False,
    }.items():  # fmt: skip
        assert is_image(path) == image, path


def test_links_do_not_bring_images_into_another_class_or_split(tmp_path: Path) -> None:
    root = make(tmp_path / "s", ["{train,val}/{a,b}/1.jpg"])
    store = make(tmp_path / "store", ["2.jpg", "more/{3,4}.jpg"])
    links = {
        "train/a/x.jpg": root / "val/a/1.jpg",
        "train/a/y.jpg": Path("../b/1.jpg"),
        "train/a/z.jpg": Path("1.jpg"),
        "train/a/others": Path("../../val"),
        "train/a/self": root / "train/a",
        "train/b/2.jpg": store / "2.jpg",
        "train/b/more": store / "more",
        "val/b/2.jpg": store / "2.jpg",
        "train/a/hop.jpg": root / "val/b/2.jpg",
    }
    for place, target in links.items():
        (root / place).symlink_to(target)
    source = open_source(root, "imagefolder")
    names = [image.name for image in source.images(tmp_path)]
    assert names == [
        "train/a/1.jpg", "train/b/1.jpg", "train/b/2.jpg", "train/b/more/3.jpg", "train/b/more/4.jpg",
        "val/a/1.jpg", "val/b/1.jpg", "val/b/2.jpg",
    ]  # fmt: skip
    assert source.ignored == [
        "train/a/hop.jpg (a link to val/b/2.jpg)", "train/a/others (a link to a directory of classes)",
        "train/a/self (a link to train/a)", "train/a/x.jpg (a link to val/a/1.jpg)",
        "train/a/y.jpg (a link to train/b/1.jpg)", "train/a/z.jpg (a link to train/a/1.jpg)",
    ]  # fmt: skip
    assert source.notes() == ["skipped 6 links to images that are read anyway"]


def test_links_that_lead_nowhere_are_unusable_where_they_may_be_images(tmp_path: Path) -> None:
    root = make(tmp_path / "s", ["{train,val}/{a,b}/1.jpg"])
    links = {
        "train/a/2.jpg": "/nowhere/2.jpg",
        "train/a/3.jpg": "3.jpg",
        "train/a/4.jpg": "../b/4.jpg",
        "train/a/more": "/nowhere/more",
        "train/a/list.txt": "/nowhere/list.txt",
        "train/c": "/nowhere/c",
        "train/d/1.jpg": "/nowhere/1.jpg",
        "latest": "/nowhere",
    }
    (root / "train/d").mkdir()
    for place, target in links.items():
        (root / place).symlink_to(target)
    source = open_source(root, "imagefolder")
    found = list(source.images(tmp_path))
    absent = "no such file or directory"
    assert {(bad.split, bad.name, bad.reason, bad.key) for bad in found if isinstance(bad, Unusable)} == {
        ("train", "train/a/2.jpg", f"a link to /nowhere/2.jpg: {absent}", "a"),
        ("train", "train/a/3.jpg", "a link to 3.jpg: too many levels of symbolic links", "a"),
        ("train", "train/a/4.jpg", f"a link to ../b/4.jpg: {absent}", "a"),
        ("train", "train/a/more", f"a link to /nowhere/more: {absent}", "a"),
        ("train", "train/c", f"a link to /nowhere/c: {absent}", "c"),
        ("train", "train/d/1.jpg", f"a link to /nowhere/1.jpg: {absent}", "d"),
    }
    assert [image.name for image in found if isinstance(image, SourceImage)] == [
        "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg",
    ]  # fmt: skip
    assert source.ignored == [
        f"latest (a link to /nowhere: {absent})", f"train/a/list.txt (a link to /nowhere/list.txt: {absent})",
    ]  # fmt: skip
    with pytest.raises(BadImages, match=r"6 of 10 image\(s\) cannot be used"):
        write_listing(tmp_path / "fail", source, tmp_path, Subset(), 0, "here")
    listing = write_listing(tmp_path / "skip", source, tmp_path, Subset(), 0, "here", on_bad="skip")
    assert (listing.keys, listing.rejected.count) == (("a", "b"), 6)
    assert listing.notes == ("no image of class 'c', 'd' can be used; the dataset has the other 2 classes",)
    (root / "test").symlink_to("/nowhere")
    (root / "val").rename(tmp_path / "val")
    (root / "val").symlink_to("/nowhere")
    with pytest.raises(ValueError, match="s/val: no images"):
        read(root)


def test_directories_that_repeat_in_the_classes_of_named_splits_may_be_either(tmp_path: Path) -> None:
    root = make(tmp_path / "s", ["{train,val}/{cat,dog}/{front,side}/1.jpg"])
    with pytest.raises(ValueError, match="'front', 'side' repeat in 'train/cat/', 'train/dog/'") as caught:
        read(root)
    classes, parts = (shlex.split(option)[0] for option in str(caught.value).split("--split-dirs ")[1:])
    assert (classes, parts) == ("train=train,val=val", "train=train/cat,val=val/cat")
    images = ["cat/1.jpg", "cat/1.jpg", "dog/1.jpg", "dog/1.jpg"]
    assert read(root, classes)[0] == {"train": images, "val": images}
    images = ["front/1.jpg", "side/1.jpg"]
    assert read(root, parts)[0] == {"train": images, "val": images}


def test_directories_without_images_are_left_out_where_the_user_says_what_the_splits_are(tmp_path: Path) -> None:
    root = make(tmp_path / "s", ["{train,val}/{a,b}/1.jpg", "train/{labels,x y}/1.txt"])
    with pytest.raises(ValueError, match=r"no images.*in 'train/labels', 'train/x y'.*--split-dirs") as caught:
        read(root)
    option = shlex.split(str(caught.value).split("--split-dirs ")[1])[0]
    found, ignored, _ = read(root, option)
    assert found == {"train": AB, "val": AB}
    assert {"train/labels/ (no images)", "train/x y/ (no images)"} <= set(ignored)


def test_a_flat_split_can_be_left_out(tmp_path: Path) -> None:
    root = make(tmp_path / "s", ["{train,test}/{a,b}/1.jpg", "val/b{1,2}.png"])
    with pytest.raises(ValueError, match=r"val: images without class directories \(no file here") as caught:
        read(root)
    assert "official" not in str(caught.value)
    found, ignored, _ = read(root, shlex.split(str(caught.value).split("--split-dirs ")[1])[0])
    assert (found, ignored) == ({"train": AB, "test": AB}, ["val/ (2 images)"])


def test_the_larger_of_nameless_splits_is_offered_as_train(tmp_path: Path) -> None:
    root = make(tmp_path / "s", ["{te,tr}/{a,b}/1.jpg", "tr/a/2.jpg"])
    with pytest.raises(ValueError, match="train=tr,val=te"):
        read(root)


def test_links_that_are_class_directories(tmp_path: Path) -> None:
    root = make(tmp_path / "s", ["train/{a,b}/1.jpg"])
    store = make(tmp_path / "store", ["c/1.jpg"])
    (root / "train/c").symlink_to(store / "c")
    (root / "val").symlink_to("train")
    source = open_source(root, "imagefolder")
    assert len(list(source.images(tmp_path))) == 6
    assert source.notes() == [
        "3 class directories are links to others, so their images are packed twice: "
        "'val/a is train/a', 'val/b is train/b', 'val/c is train/c'"
    ]
    (root / "val").unlink()
    (root / "train/d").symlink_to(root)
    with pytest.raises(ValueError, match="train/d: is a link to a directory that contains other classes"):
        read(root)
