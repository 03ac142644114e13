"""A TFDS data set that needs no network: silhouettes of horses and humans, drawn on first use.

Features, class names, splits and numbers of examples are those of TFDS' `horses_or_humans`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from trainer import drawing

IMAGE_SIZE = 300
EXAMPLES = {"train": 1027, "test": 256}
FAST_PNG = 1


@dataclasses.dataclass(eq=False)
class SilhouettesConfig(tfds.core.BuilderConfig):  # type: ignore[misc]
    """`image_size` in pixels: pictures are drawn at that size, not scaled down. `seed` fixes every pixel."""

    image_size: int = IMAGE_SIZE
    seed: int = 0


@functools.cache  # TFDS refuses another object of the name of one that it lists
def config_for(image_size: int) -> SilhouettesConfig:
    return SilhouettesConfig(name=f"{image_size}x{image_size}", image_size=image_size)


class Silhouettes(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
    """Horses and humans as silhouettes before gradients, blobs, twigs and grain."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [config_for(IMAGE_SIZE)]  # noqa: RUF012  (TFDS' own spelling)

    def _info(self) -> Any:
        size = self.builder_config.image_size
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(size, size, 3)),
                "label": tfds.features.ClassLabel(names=list(drawing.NAMES)),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, description=self.__doc__, features=features, supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split, count) for split, count in EXAMPLES.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config

        def example(index: int) -> tuple[int, dict[str, Any]]:
            picture, label = drawing.draw(config.seed, split, index, config.image_size)
            png = tf.io.encode_png(picture, compression=FAST_PNG).numpy()
            return index, {"image": io.BytesIO(png), "label": label}

        yield from _in_parallel(example, range(count))


def _in_parallel(work: Any, items: Iterable[Any]) -> Iterator[Any]:
    """Like map, in order, on all cores (numpy and TensorFlow let go of the interpreter's lock)."""
    cores = len(os.sched_getaffinity(0))
    pending: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 4 * cores:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
