"""Puts a few small data sets where TFDS looks for prepared ones, and shows what the trainer makes of each.

One line of JSON a data set: what was loaded, or why it was refused.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from trainer import data, silhouettes
from trainer.errors import Refused
from trainer.request import Request, Size

ROOT = Path(os.environ["TFDS_DATA_DIR"])
FLOWERS = ["dandelion", "daisy", "tulips", "sunflowers", "roses"]


def examples(shape: tuple[int, int, int], labels: list[int], **more: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each picture is of one colour: ten times its label. With sizes that differ, if a side is 0."""
    for index, label in enumerate(labels):
        height, width = (side or 20 + 7 * index for side in shape[:2])
        picture = np.full((height, width, shape[2]), 10 * max(0, label), np.uint8)
        yield index, {"image": picture, "label": label, **more}


def store(name: str, version: str, features: dict[str, Any], splits: dict[str, Any], **options: Any) -> None:
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        features=tfds.features.FeaturesDict(features),
        split_datasets=splits,
        data_dir=ROOT,
        **options,
    )


def prepare() -> None:
    image, label = tfds.features.Image, tfds.features.ClassLabel
    store(
        "tf_flowers",
        "3.0.1",
        {"image": image(), "label": label(names=FLOWERS)},
        {"train": examples((0, 0, 3), [number % 5 for number in range(40)])},
    )
    store(
        "mnist",
        "3.0.1",
        {"image": image(shape=(28, 28, 1)), "label": label(num_classes=10)},
        {part: examples((28, 28, 1), [*range(10)]) for part in ("train", "test")},
    )
    # No pair is named: the only image and the only label are found among the rest. Transparency is left out.
    store(
        "with_notes",
        "1.0.0",
        {"note": tfds.features.Text(), "image": image(shape=(8, 8, 4)), "label": label(num_classes=3)},
        {part: examples((8, 8, 4), [0, 1, 2], note="n") for part in ("first", "val")},
    )
    store(
        "captions",
        "1.0.0",
        {"image": image(shape=(8, 8, 3)), "label": tfds.features.Text()},
        {"train": iter([(0, {"image": np.zeros((8, 8, 3), np.uint8), "label": "a"})])},
    )
    store(
        "half_labelled",
        "1.0.0",
        {"image": image(shape=(8, 8, 3)), "label": label(num_classes=2)},
        {"train": examples((8, 8, 3), [0, 1]), "test": examples((8, 8, 3), [-1, -1])},
    )


def show(name: str, size: Size | None = None, validation: str | None = None) -> None:
    imported = threading.Event()
    imported.set()
    try:
        loaded = data.load(Request(name, size, None, validation, ROOT), imported)
    except Refused as refused:
        print(json.dumps({"name": name, "refused": f"{refused.message} {refused.hint}"}))
        return
    parts = {}
    for part, split in (("train", loaded.train), ("validation", loaded.validation)):
        coloured = [int(picture.max()) for picture in split.images]
        wrong = [label for label, colour in zip(split.labels.tolist(), coloured, strict=True) if colour != 10 * label]
        parts[part] = [str(split.images.dtype), list(split.images.shape), wrong]
    print(json.dumps({"name": name, "classes": len(loaded.class_names), "identity": loaded.identity, **parts}))


if __name__ == "__main__":
    prepare()
    show("tf_flowers", (24, 16))
    show("mnist")
    show("with_notes")
    show("captions")
    show("half_labelled")
    show("mnist", validation="holdout")
    own = silhouettes.Silhouettes(config=silhouettes.config_for(silhouettes.IMAGE_SIZE), data_dir=ROOT)
    print(json.dumps({"name": own.info.full_name}))
    sys.stdout.flush()
