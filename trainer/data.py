"""Which examples a step trains on: a pure function of seed, epoch and offset. And where they come from."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from trainer import decoded, files
from trainer.decoded import Array, Dataset, Split
from trainer.errors import Refused, TrainerError
from trainer.request import DATA_ENVIRONMENT, Request, Size

OWN_SIZE_UNKNOWN = 224
RESIZE_BATCH = 64
# module:function. What TFDS has after a colon is a version, which begins with a digit.
OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Batches:
    """Batches in the order of one random permutation for each (seed, epoch).

    To go on from any place costs nothing: nothing has to be skipped, and nothing but the place is saved.
    """

    def __init__(self, images: Array, labels: Array, *, batch_size: int, seed: int) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed

    def order(self, epoch: int) -> Array:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.labels))

    def batch(self, order: Array, offset: int) -> tuple[Array, Array]:
        chosen = order[offset : offset + self.batch_size]
        return self.images[chosen], self.labels[chosen]

    def of_epoch(self, epoch: int, offset: int = 0) -> Iterator[tuple[Array, Array]]:
        """The full batches of an epoch from `offset` (in examples) on; the next is gathered meanwhile."""
        order = self.order(epoch)
        offsets = range(offset, len(order) - self.batch_size + 1, self.batch_size)
        if not offsets:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="next batch") as pool:
            coming = pool.submit(self.batch, order, offsets[0])
            for following in offsets[1:]:
                batch, coming = coming.result(), pool.submit(self.batch, order, following)
                yield batch
            yield coming.result()


def load(request: Request, imported: threading.Event) -> Dataset:
    """The data set as arrays: from the decoded copy, else prepared through TFDS and decoded now.

    TFDS is touched only once `imported` is set: two threads that import parts of TensorFlow at the same time
    may see each other's modules half-made.
    Raises Refused for a name or size that cannot be, TrainerError where it cannot be had.
    """
    if OWN.fullmatch(request.name):
        return own_dataset(request)
    directory = request.directory / "decoded" / _directory_name(request)
    ready = decoded.read(directory)
    if ready is not None:
        return ready
    imported.wait()
    try:
        with decoded.sole_preparer(directory):
            files.remove_leftovers(directory.parent)
            ready = decoded.read(directory) or _prepare(request, directory)
    except OSError as error:
        hint = f"name a directory with room with --data-dir or ${DATA_ENVIRONMENT}"
        raise TrainerError(f"no room for data in {request.directory}: {error}", hint=hint) from error
    return ready


def _directory_name(request: Request) -> str:
    size = "x".join(map(str, request.size)) if request.size else "own"
    readable = re.sub(r"[^\w.-]+", "_", request.name)
    splits = hashlib.sha256(repr((request.name, request.train_split, request.validation_split)).encode())
    return f"{readable}-{size}-{splits.hexdigest()[:8]}"


def _prepare(request: Request, directory: Path) -> Dataset:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = _builder(request)
    print(f"preparing the data set {builder.info.full_name} in {request.directory}", flush=True)
    _download_and_prepare(builder, request.name)
    image, label = _keys(builder)
    native = builder.info.features[image].shape
    size = request.size or (native[:2] if all(native[:2]) else (OWN_SIZE_UNKNOWN, OWN_SIZE_UNKNOWN))
    writer = decoded.Writer(directory)
    for part, split in zip(decoded.PARTS, _splits(builder, request), strict=True):
        writer.split(part, *_decode(builder, split, (image, label), size))
    names = tuple(builder.info.features[label].names)
    splits = " ".join(_splits(builder, request))
    writer.publish(request.name, f"{builder.info.full_name} {splits} {size[0]}x{size[1]}", names)
    ready = decoded.read(directory)
    if ready is None:
        raise TrainerError(f"the data set that was just written to {directory} cannot be read")
    return ready


def _builder(request: Request) -> Any:
    import tensorflow_datasets as tfds

    from trainer import silhouettes

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
    import tensorflow_datasets as tfds

    from trainer import download

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


def _keys(builder: Any) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    features, keys = builder.info.features, builder.info.supervised_keys
    kinds = [type(features[key]).__name__ for key in keys] if keys and len(keys) == 2 else []
    if len(kinds) == 2 and isinstance(features[keys[0]], tfds.features.Image):
        image, label = keys
        if isinstance(features[label], tfds.features.ClassLabel):
            return str(image), str(label)
    raise Refused(
        f"{builder.info.full_name} is not for image classification: expected an Image and a ClassLabel, "
        f"it gives {', '.join(kinds) or 'no (input, label) pair'}"
    )


def _splits(builder: Any, request: Request) -> tuple[str, str]:
    """What to train on and what to validate on: as asked, else what the data set has."""
    there = list(builder.info.splits)
    held_out = next((name for name in ("validation", "test") if name in there), None)
    train = request.train_split or ("train" if held_out else "train[:90%]")
    validation = request.validation_split or held_out or "train[90%:]"
    for split in (train, validation):
        try:
            count = builder.info.splits[split].num_examples
        except (KeyError, ValueError) as error:
            raise Refused(f"{request.name} has no split {split!r}: it has {', '.join(there)}") from error
        if not count:
            raise Refused(f"the split {split!r} of {request.name} is empty")
    return train, validation


def _decode(builder: Any, split: str, keys: tuple[str, str], size: Size) -> tuple[int, tuple[int, ...], Iterator[Any]]:
    """The number of examples of a split, the shape of one, and batches of all of them in a fixed order."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def example(features: Any) -> tuple[Any, Any]:
        image = features[keys[0]]
        if image.shape[-1] == 1:
            image = tf.image.grayscale_to_rgb(image)
        if image.shape[:2] != size:
            image = tf.image.resize(tf.cast(image, tf.float32), size, antialias=True)
            image = tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8)
        return tf.ensure_shape(image[..., :3], (*size, 3)), tf.cast(features[keys[1]], tf.int32)

    reading = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    examples = builder.as_dataset(split=split, shuffle_files=False, read_config=reading)
    batches = examples.map(example, num_parallel_calls=tf.data.AUTOTUNE).batch(RESIZE_BATCH)
    return builder.info.splits[split].num_examples, (*size, 3), batches.as_numpy_iterator()


def own_function(reference: str, what: str) -> Any:
    """The function that `module:function` names, looked up from the working directory too."""
    module, _, name = reference.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise Refused(f"the {what} {reference!r} cannot be found: {error}") from error


def own_dataset(request: Request) -> Dataset:
    """A user's own: a function of the image size (None, or height and width) that returns
    ((images, labels), (validation images, validation labels)), images uint8, labels integers from 0 on.
    """
    answer = own_function(request.name, "data set")(request.size)
    try:
        train, validation = (_own_split(request.name, *part) for part in answer)
    except (TypeError, ValueError) as error:
        expected = "((images, labels), (validation images, validation labels))"
        raise Refused(f"{request.name} should return {expected}: {error}") from error
    classes = int(max(train.labels.max(), validation.labels.max())) + 1
    sums = [decoded.checksum(array) for part in (train, validation) for array in (part.images, part.labels)]
    identity = f"{request.name} content {' '.join(f'{number:08x}' for number in sums)}"
    return Dataset(request.name, identity, tuple(map(str, range(classes))), train, validation)


def _own_split(name: str, images: Any, labels: Any) -> Split:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise Refused(f"{name}: expected uint8 images of 4 dimensions, received {images.dtype} of {images.ndim}")
    if len(images) != len(labels) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise Refused(f"{name}: expected one integer label for each of {len(images)} images")
    return Split(images, labels.astype(np.int32))
