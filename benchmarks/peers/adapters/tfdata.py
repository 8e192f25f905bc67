"""tf.data on TFRecord files: the crop is drawn first, and only its region is decoded, in TensorFlow's threads."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from adapters.shared import shuffled_files

FILE_IMAGES = SHUFFLED = 1000  # of one TFRecord file; in the shuffle buffer


def prepare(job: SimpleNamespace) -> None:
    files = shuffled_files(job)
    for start in range(0, len(files), FILE_IMAGES):
        with tf.io.TFRecordWriter(f"{job.prepared}/{start:09d}.tfrecord") as writer:
            for path, label in files[start : start + FILE_IMAGES]:
                image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[path.read_bytes()]))
                features = {"image": image, "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))}
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def draw_crop(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Draw top, left, height and width from torchvision's distribution: ten attempts, then the whole image.

    TensorFlow's own `sample_distorted_bounding_box` differs: its areas are not uniform.
    """
    size = tf.cast([height, width], tf.float32)
    area = tf.random.uniform([10], 0.08, 1.0) * size[0] * size[1]
    ratio = tf.exp(tf.random.uniform([10], math.log(3 / 4), math.log(4 / 3)))
    shapes = tf.round(tf.stack([tf.sqrt(area / ratio), tf.sqrt(area * ratio)], axis=1))
    fits = tf.reduce_all((shapes > 0) & (shapes <= size), axis=1)
    shape = tf.where(tf.reduce_any(fits), shapes[tf.argmax(fits)], size)
    start = tf.floor(tf.random.uniform([2]) * (size - shape + 1))
    return tf.cast(tf.concat([start, shape], axis=0), tf.int32)


def loader(job: SimpleNamespace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    wanted = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}

    def decode(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, wanted)
        shape = tf.io.extract_jpeg_shape(example["image"])
        image = tf.io.decode_and_crop_jpeg(example["image"], draw_crop(shape[0], shape[1]), channels=3)
        image = tf.image.resize(image, [job.image_size, job.image_size], "bilinear", antialias=True)
        return (tf.image.random_flip_left_right(image) - job.mean) / job.std, example["label"]

    options = tf.data.Options()
    options.threading.private_threadpool_size = job.workers
    options.deterministic = False
    dataset = tf.data.TFRecordDataset(sorted(map(str, Path(job.prepared).glob("*.tfrecord")))).repeat()
    dataset = dataset.shuffle(SHUFFLED).map(decode, num_parallel_calls=job.workers)
    dataset = dataset.batch(job.batch_size, drop_remainder=True).prefetch(2).with_options(options)
    for images, labels in dataset.as_numpy_iterator():
        yield np.moveaxis(images, -1, 1), labels
