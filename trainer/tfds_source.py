"""Image-classification data sets of TensorFlow Datasets (TFDS), by name: fetched, split, decoded to uint8."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from trainer import decoded, download, silhouettes
from trainer.decoded import Dataset
from trainer.errors import Refused, TrainerError
from trainer.request import Request, Size

SIZE_UNKNOWN = 224
RESIZE_BATCH = 64
MOST_NAMED = 12
# What TFDS' data sets call the examples that are held out, the one to prefer first.
HELD_OUT = ("validation", "val", "valid", "test")


def prepare(request: Request, directory: Path) -> Dataset:
    """Fetch a data set through TFDS' own builder and write it decoded to `directory`.

    Raises Refused for a name, split or size that cannot be, TrainerError where the data cannot be had.
    """
    tfds.disable_progress_bar()
    builder = _builder(request)
    print(f"preparing the data set {builder.info.full_name} in {request.directory}", flush=True)
    image, label = keys(builder.info)
    _refuse_strange_images(builder.info.features[image], request.name)
    _download_and_prepare(builder, request.name)
    names = tuple(builder.info.features[label].names)
    native = builder.info.features[image].shape
    size = request.size or (native[:2] if all(native[:2]) else (SIZE_UNKNOWN, SIZE_UNKNOWN))
    splits = _splits(builder, request)
    with decoded.Writer(directory) as writer:
        for part, split in zip(decoded.PARTS, splits, strict=True):
            examples = _decode(builder, split, (image, label), size)
            count = builder.info.splits[split].num_examples
            writer.split(part, count, (*size, 3), _labelled(examples, f"{split!r} of {request.name}", len(names)))
        writer.publish(request.name, f"{builder.info.full_name} {' '.join(splits)} {size[0]}x{size[1]}", names)
    ready = decoded.read(directory)
    if ready is None:
        raise TrainerError(f"the data set that was just written to {directory} cannot be read")
    return ready


def _builder(request: Request) -> Any:
    if request.name == "silhouettes":
        height, width = request.size or (silhouettes.IMAGE_SIZE,) * 2
        if height != width:
            raise Refused(f"silhouettes are square, {height}x{width} is not", hint="--image-size 64")
        return silhouettes.Silhouettes(config=silhouettes.config_for(height), data_dir=request.directory)
    try:
        return tfds.builder(request.name, data_dir=request.directory)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(request.name, tfds.list_builders(), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`silhouettes` needs no network"
        raise Refused(f"TFDS has no data set {request.name!r}", hint=hint) from error
    except (ValueError, AssertionError) as error:
        raise Refused(f"TFDS refuses {request.name!r}: {error}") from error


def _download_and_prepare(builder: Any, name: str) -> None:
    download.make_patient(builder)
    # Without this TFDS asks Google's storage for statistics of the data set, which needs a network.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config)
    except (download.DownloadFailed, tfds.download.DownloadError) as error:
        raise TrainerError(
            f"the data set {name} could not be downloaded: {error}",
            hint="without a network train on `--dataset silhouettes`, which is drawn on this machine",
        ) from error
    except AssertionError as error:  # TFDS' way to say that a data set has to be fetched by hand
        raise TrainerError(f"TFDS cannot fetch {name} by itself: {error}") from error
    except RuntimeError as error:  # as TFDS wraps it
        if isinstance(error.__cause__, tf.errors.ResourceExhaustedError):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def keys(info: Any) -> tuple[str, str]:
    """The features that are the image and its class: the pair that TFDS names (`as_supervised`), else the only
    Image and the only ClassLabel, or of several the one called `label`.
    """
    features = info.features
    pair = info.supervised_keys
    if isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(key, str) for key in pair):
        image, label = (features[key] for key in pair)
        if isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel):
            return str(pair[0]), str(pair[1])
    top = dict(features.items()) if isinstance(features, Mapping | tfds.features.FeaturesDict) else {}
    images = [key for key, feature in top.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in top.items() if isinstance(feature, tfds.features.ClassLabel)]
    label = labels[0] if len(labels) == 1 else "label"
    if len(images) == 1 and label in labels:
        return images[0], label
    has = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in [*top.items()][:MOST_NAMED])
    raise Refused(
        f"{info.full_name} is not for image classification: expected one Image and one ClassLabel, "
        f"received {has or type(features).__name__}"
    )


def _refuse_strange_images(feature: Any, name: str) -> None:
    kind, channels = np.dtype(feature.np_dtype).name, feature.shape[-1]
    if kind not in ("uint8", "uint16") or channels not in (1, 3, 4):
        raise Refused(f"the images of {name} are {kind} with {channels} channels: expected uint8 with 1, 3 or 4")


def default_splits(sizes: Mapping[str, int]) -> tuple[str, str]:
    """What to train on and what to validate on, given the splits of a data set and their numbers of examples.

    `train`, else the largest; and what is held out, else the last tenth of what is trained on.
    """
    train = "train" if "train" in sizes else max(sizes, key=lambda name: sizes[name])
    held_out = next((name for name in HELD_OUT if sizes.get(name) and name != train), None)
    return (train, held_out) if held_out else (f"{train}[:90%]", f"{train}[90%:]")


def _splits(builder: Any, request: Request) -> tuple[str, str]:
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    train, validation = default_splits(sizes)
    splits = request.train_split or train, request.validation_split or validation
    for split in splits:
        try:
            count = builder.info.splits[split].num_examples
        except (KeyError, ValueError, AssertionError) as error:
            raise Refused(f"{request.name} has no split {split!r}: it has {', '.join(sizes)}") from error
        if not count:
            raise Refused(f"the split {split!r} of {request.name} is empty")
    return splits


def _decode(builder: Any, split: str, keys: tuple[str, str], size: Size) -> Iterator[Any]:
    """Batches of (images, labels): all examples of a split in a fixed order."""

    def example(features: Any) -> tuple[Any, Any]:
        return _as_rgb(features[keys[0]], size), tf.cast(features[keys[1]], tf.int32)

    reading = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    examples = builder.as_dataset(split=split, shuffle_files=False, read_config=reading)
    batches = examples.map(example, num_parallel_calls=tf.data.AUTOTUNE).batch(RESIZE_BATCH)
    yield from batches.as_numpy_iterator()


def _as_rgb(image: Any, size: Size) -> Any:
    """uint8, three channels, of the size asked for. A fourth channel is transparency, and left out."""
    if image.dtype == tf.uint16:
        image = tf.cast(image // 257, tf.uint8)
    if image.shape[-1] == 1:
        image = tf.image.grayscale_to_rgb(image)
    if image.shape[:2] != size:
        image = tf.image.resize(tf.cast(image, tf.float32), size, antialias=True)
        image = tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8)
    return tf.ensure_shape(image[..., :3], (*size, 3))


def _labelled(batches: Iterator[Any], what: str, classes: int) -> Iterator[Any]:
    """The same batches. Raises Refused where an example has no label (TFDS gives it -1)."""
    for images, labels in batches:
        if labels.min() < 0 or labels.max() >= classes:
            hint = "name splits with labels with --train-split and --validation-split, such as 'train[90%:]'"
            raise Refused(f"the split {what} has examples without a label", hint=hint)
        yield images, labels
