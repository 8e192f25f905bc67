"""tf.data on TFRecord files: the crop is drawn first, and only its region decoded. Threads of TensorFlow's own."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

FILE_IMAGES = 1000  # of one TFRecord file
SHUFFLED = 1000
ATTEMPTS = 10  # as torchvision's; then the whole image


def prepare(job: Any) -> None:
    target = Path(job.prepared)
    target.mkdir(parents=True)
    paths = sorted(Path(job.folder).glob("*/*.jpg"))
    np.random.default_rng(0).shuffle(paths)
    for start in range(0, len(paths), FILE_IMAGES):
        with tf.io.TFRecordWriter(str(target / f"train-{start // FILE_IMAGES:05d}.tfrecord")) as writer:
            for path in paths[start : start + FILE_IMAGES]:
                features = {
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[path.read_bytes()])),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(path.parent.name)])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())


def draw_crop(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Top, left, height and width by torchvision's law. TensorFlow's own `sample_distorted_bounding_box` has another:
    its areas are not uniform."""
    size = tf.cast([height, width], tf.float32)
    area = tf.random.uniform([ATTEMPTS], 0.08, 1.0) * size[0] * size[1]
    ratio = tf.exp(tf.random.uniform([ATTEMPTS], math.log(3 / 4), math.log(4 / 3)))
    shapes = tf.round(tf.stack([tf.sqrt(area / ratio), tf.sqrt(area * ratio)], axis=1))
    fits = tf.reduce_all((shapes > 0) & (shapes <= size), axis=1)
    shape = tf.where(tf.reduce_any(fits), shapes[tf.argmax(fits)], size)
    start = tf.floor(tf.random.uniform([2]) * (size - shape + 1))
    return tf.cast(tf.concat([start, shape], axis=0), tf.int32)


def batches(job: Any) -> Iterator[np.ndarray]:
    wanted = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}

    def decode(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, wanted)
        shape = tf.io.extract_jpeg_shape(example["image"])
        image = tf.io.decode_and_crop_jpeg(example["image"], draw_crop(shape[0], shape[1]), channels=3)
        image = tf.image.resize(image, [job.image_size, job.image_size], "bilinear", antialias=True)
        image = tf.image.random_flip_left_right(image)
        return (image - job.mean) / job.std, example["label"]

    options = tf.data.Options()
    options.threading.private_threadpool_size = job.workers
    options.deterministic = False
    files = sorted(map(str, Path(job.prepared).glob("*.tfrecord")))
    dataset = tf.data.TFRecordDataset(files).repeat().shuffle(SHUFFLED)
    dataset = dataset.map(decode, num_parallel_calls=job.workers).batch(job.batch_size, drop_remainder=True)
    for images, _ in dataset.prefetch(2).with_options(options).as_numpy_iterator():
        yield np.moveaxis(images, -1, 1)
