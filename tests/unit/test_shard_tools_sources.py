"""Reading an ImageFolder tree: what is an image, of which class, and what is said when it does not fit."""

import pickle

import pytest

from shard_tools.shard import plan_shards
from shard_tools.sources.imagefolder import SourceImage, read_source


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    return root


def test_splits_classes_and_order(tmp_path):
    make(tmp_path, "train/b/2.JPG", "train/b/deep/er/1.jpeg", "train/a/x.PNG", "train/a/y.webp", "val/b/z.bmp")
    make(tmp_path, "train/a/notes.txt", "train/a/.hidden.jpg", "train/.cache/a.jpg", "README", "train/stray.jpg")
    source = read_source(tmp_path)
    assert [info.wnid for info in source.classes] == ["a", "b"]
    assert [(i.name, i.label) for i in source.splits["train"]] == [
        ("train/a/x.PNG", 0),
        ("train/a/y.webp", 0),
        ("train/b/2.JPG", 1),
        ("train/b/deep/er/1.jpeg", 1),
    ]
    assert [(i.name, i.label) for i in source.splits["val"]] == [("val/b/z.bmp", 1)]
    assert source.ignored == ["README", "train/a/notes.txt", "train/stray.jpg"]
    assert "ignored 3" in source.ignored_line
    assert "notes.txt" in source.ignored_line
    image = source.splits["train"][0]
    assert image.size_bytes == len(image.name)
    assert image.read() == b"x" * len(image.name)
    assert pickle.loads(pickle.dumps(image)) == image


def test_a_flat_tree_is_one_split_even_with_a_class_called_train(tmp_path):
    make(tmp_path, "plane/1.jpg", "train/2.jpg", "car/3.jpg")
    source = read_source(tmp_path)
    assert list(source.splits) == ["train"]
    assert [info.wnid for info in source.classes] == ["car", "plane", "train"]


def test_a_directory_loop_ends(tmp_path):
    make(tmp_path, "train/a/1.jpg")
    (tmp_path / "train/a/loop").symlink_to(tmp_path / "train")
    assert 1 <= len(read_source(tmp_path).splits["train"]) <= 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no images"),
        (["a.jpg", "b.jpg"], "no images"),
        (["train/a/1.jpg", "val/b/2.jpg"], "class 'b' is not in train"),
        (["train/a/1.jpg", "val/2.jpg"], "images without class directories"),
        (["train/a/1.jpg", "train/b/1.txt"], "no images in class 'b'"),
        (["train/a/1.jpg", "val/a/1.txt"], "no images in its class directories"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(tmp_path, files, message):
    make(tmp_path, *files)
    with pytest.raises(ValueError, match=message) as caught:
        read_source(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_not_a_directory(tmp_path):
    with pytest.raises(ValueError, match="no such directory"):
        read_source(tmp_path / "none")
    make(tmp_path, "file")
    with pytest.raises(ValueError, match="not a directory"):
        read_source(tmp_path / "file")


def test_a_changed_file_is_noticed(tmp_path):
    make(tmp_path, "train/a/1.jpg")
    (image,) = read_source(tmp_path).splits["train"]
    (tmp_path / "train/a/1.jpg").write_bytes(b"longer than before, by far")
    with pytest.raises(ValueError, match="when packing began"):
        image.read()


def test_planned_shards_hold_every_image_once_in_a_seeded_order(tmp_path):
    images = [SourceImage(f"{i}.jpg", "/r", i % 7, 1000 + i) for i in range(1000)]
    jobs = plan_shards(tmp_path, "train", images, 64, 1 << 30, 3, 10**8)
    names = [image.name for job in jobs for image in job.images]
    assert sorted(names) == sorted(image.name for image in images)
    assert [len(job.images) for job in jobs] == [64] * 15 + [40]
    assert [job.first for job in jobs] == [64 * i for i in range(16)]
    labels = [image.label for job in jobs[:1] for image in job.images]
    assert len(set(labels)) == 7  # shuffled over the classes
    positions = [int(name.split(".")[0]) for name in names]
    assert abs(sum(positions[:500]) / 500 - 499.5) < 50  # and over the whole split
    again = plan_shards(tmp_path, "train", images, 64, 1 << 30, 3, 10**8)
    assert again == jobs
    for split, seed in (("val", 3), ("train", 4)):
        other = plan_shards(tmp_path, split, images, 64, 1 << 30, seed, 10**8)
        assert [image.name for job in other for image in job.images] != names


def test_shard_size_limits_the_tar(tmp_path):
    images = [SourceImage(f"{i}.jpg", "/r", 0, 1000) for i in range(100)]
    jobs = plan_shards(tmp_path, "train", images, 10**6, 25 * 2560, 0, 10**8)  # 2,560 bytes a sample in a tar
    assert [len(job.images) for job in jobs] == [25] * 4
    assert len(plan_shards(tmp_path, "train", images, 10**6, 1, 0, 10**8)) == 100  # at least one sample each
