"""Which examples a step trains on: a pure function of seed, epoch and offset. And where they come from."""

from __future__ import annotations

import gc
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
from trainer.request import DATA_ENVIRONMENT, Request

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

    TFDS and a user's module are touched only once `imported` is set: two threads that import parts of
    TensorFlow at the same time may see each other's modules half-made.
    Raises Refused for a name or size that cannot be, TrainerError where it cannot be had.
    """
    if OWN.fullmatch(request.name):
        imported.wait()
        return own_dataset(request)
    directory = request.directory / "decoded" / _directory_name(request)
    ready = decoded.read(directory)
    if ready is not None:
        return ready
    imported.wait()
    gc.enable()  # preparing may take hours
    from trainer import tfds_source

    try:
        with decoded.sole_preparer(directory):
            files.remove_leftovers(directory.parent)
            ready = decoded.read(directory) or tfds_source.prepare(request, directory)
    except OSError as error:
        hint = f"name a directory with room with --data-dir or ${DATA_ENVIRONMENT}"
        raise TrainerError(f"the data cannot be kept in {request.directory}: {error}", hint=hint) from error
    return ready


def _directory_name(request: Request) -> str:
    size = "x".join(map(str, request.size)) if request.size else "own"
    readable = re.sub(r"[^\w.-]+", "_", request.name)
    splits = hashlib.sha256(repr((request.name, request.train_split, request.validation_split)).encode())
    return f"{readable}-{size}-{splits.hexdigest()[:8]}"


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
