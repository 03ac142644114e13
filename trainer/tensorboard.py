"""TensorBoard event files that go on over restarts: what a checkpoint does not have is taken out again."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer import files

RUNNING_EVERY = 10.0
PARTS = ("train", "validation")
RESUMES = "resumes"
OF_AN_EPOCH = ("epoch_", "examples_per_second")
_HEAD, _TAIL = 12, 4


class Events:
    """Writes scalars and texts under `directory`/train and `directory`/validation. A write that fails
    (disk full) ends TensorBoard's view of the run, not the run."""

    def __init__(self, directory: Path, step: int, epoch_is_over: bool) -> None:
        """Goes on after `step`: later events, of steps that are done again now, are removed; and those of the
        epoch that ends at `step`, unless that is over (validated) already."""
        self._directory = directory
        self._writers: dict[str, Any] = {}
        self._told: dict[tuple[str, str], int] = {}
        self._running = 0.0
        self._failed = False
        for part in PARTS:
            for path in sorted((directory / part).glob("events.out.tfevents.*")):
                drop_after(path, step, epoch_is_over)

    def scalars(self, part: str, step: int, values: Mapping[str, float]) -> None:
        if any(tag.startswith("running_") for tag in values):
            if time.monotonic() - self._running < RUNNING_EVERY:
                return
            self._running = time.monotonic()
        fresh = {tag: value for tag, value in values.items() if self._told.get((part, tag)) != step}
        self._told.update({(part, tag): step for tag in fresh})
        summaries = [tf.compat.v1.Summary.Value(tag=tag, simple_value=value) for tag, value in fresh.items()]
        self._write(part, step, summaries)

    def text(self, tag: str, step: int, text: str) -> None:
        metadata = tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = "text"
        tensor = tf.make_tensor_proto([text])
        self._write("train", step, [tf.compat.v1.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)])

    def flush(self) -> None:
        for writer in self._writers.values():
            self._try(writer.flush)

    def _write(self, part: str, step: int, summaries: list[Any]) -> None:
        if not summaries or self._failed:
            return
        summary = tf.compat.v1.Summary(value=summaries)
        event = tf.compat.v1.Event(wall_time=time.time(), step=step, summary=summary)
        self._try(lambda: self._writer(part).write(event.SerializeToString()))
        self._try(lambda: self._writer(part).flush())

    def _writer(self, part: str) -> Any:
        if part not in self._writers:
            (self._directory / part).mkdir(parents=True, exist_ok=True)
            stamp = f"{time.time():.3f}".replace(".", "")
            name = f"events.out.tfevents.{stamp}.{socket.gethostname()}.{os.getpid()}"
            writer = tf.io.TFRecordWriter(str(self._directory / part / name))
            version = tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2")
            writer.write(version.SerializeToString())
            self._writers[part] = writer
        return self._writers[part]

    def _try(self, action: Any) -> None:
        try:
            action()
        except (OSError, tf.errors.OpError) as error:
            self._failed = True
            print(f"no more TensorBoard events: {error}", flush=True)


def drop_after(path: Path, step: int, epoch_is_over: bool) -> None:
    """Take the events after `step` out of a file, and a torn one at its end. Those at `step` go too that are told
    anew: texts about resuming, and the metrics of an epoch that is not over.
    """
    told_anew = RESUMES if epoch_is_over else (RESUMES, *OF_AN_EPOCH)
    kept, dropped = [], False
    records = list(_records(path))
    for record in records:
        event = tf.compat.v1.Event.FromString(record[_HEAD:-_TAIL])
        anew = event.step == step and any(value.tag.startswith(told_anew) for value in event.summary.value)
        if event.step > step or anew:
            dropped = True
        else:
            kept.append(record)
    if dropped or sum(map(len, records)) < path.stat().st_size:
        _replace(path, kept)


def _replace(path: Path, records: list[bytes]) -> None:
    try:
        if len(records) > 1:
            files.write_bytes(path, b"".join(records), durable=False)
        else:
            files.discard(path)
    except OSError:
        pass  # a full disk: two points at one step are the lesser evil


def _records(path: Path) -> Iterator[bytes]:
    """The whole records of a TFRecord file, framing included: length (8), its CRC (4), data, CRC (4)."""
    content = path.read_bytes()
    at = 0
    while at + _HEAD <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + _HEAD + length + _TAIL
        if end > len(content):
            return
        yield content[at:end]
        at = end
