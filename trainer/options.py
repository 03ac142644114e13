"""The command line, and nothing heavy: `--help` and wrong flags answer without TensorFlow."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import policy
from trainer.directory import ENVIRONMENT, default_root
from trainer.request import DATA_ENVIRONMENT, Request, Size, default_directory

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True)
class Options:
    dataset: str
    model: str
    epochs: int
    batch_size: int
    image_size: Size | None
    learning_rate: float
    seed: int
    checkpoint_interval: policy.Interval
    keep: int
    train_split: str | None
    validation_split: str | None
    checkpoint_dir: Path
    data_dir: Path
    precision: str
    devices: int | None
    deterministic: bool
    xla: bool

    @property
    def data(self) -> Request:
        return Request(self.dataset, self.image_size, self.train_split, self.validation_split, self.data_dir)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Raises SystemExit: 0 after --help, 2 for flags that cannot be, naming what was expected."""
    values = vars(_parser().parse_args(arguments))
    values["checkpoint_dir"] = values["checkpoint_dir"] or default_root()
    values["data_dir"] = values["data_dir"] or default_directory()
    return Options(**values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Train an image classifier; go on from the last checkpoint, bit for bit, after any kill.",
        epilog="Exit codes: 0 finished, 75 saved on SIGTERM (start me again), 2 refused, else failed.",
        allow_abbrev=False,
    )
    job = parser.add_argument_group("what to train")
    job.add_argument(
        "--dataset",
        default="horses_or_humans",
        metavar="NAME",
        help="of TFDS, `silhouettes` or module:function; default: %(default)s",
    )
    job.add_argument(
        "--model",
        default="MobileNetV3Small",
        metavar="NAME",
        help="of keras.applications or module:function; default: %(default)s",
    )
    job.add_argument("--epochs", type=_positive, default=70, metavar="N", help="default: %(default)s")
    job.add_argument(
        "--batch-size", type=_positive, default=32, metavar="N", help="over all devices; default: %(default)s"
    )
    job.add_argument("--image-size", type=_size, metavar="N or HxW", help="default: the data set's own, else 224")
    job.add_argument("--learning-rate", type=_rate, default=0.001, metavar="X", help="of Adam; default: %(default)s")
    job.add_argument("--seed", type=_natural, default=0, metavar="N", help="default: %(default)s")
    job.add_argument("--train-split", metavar="SPLIT", help="in TFDS' notation, such as train[:90%%]; default: train")
    job.add_argument(
        "--validation-split", metavar="SPLIT", help="default: validation or test, else the last tenth of train"
    )
    saving = parser.add_argument_group("where, and when to save")
    saving.add_argument(
        "--checkpoint-interval",
        type=_interval,
        default=policy.Interval(),
        metavar="auto, N or Ns",
        help="steps or seconds apart; auto: as close as costs at most 1%% of the time",
    )
    saving.add_argument(
        "--keep", type=_at_least_two, default=2, metavar="N", help="checkpoints to keep; default: %(default)s"
    )
    saving.add_argument(
        "--checkpoint-dir", type=Path, metavar="DIR", help=f"default: ${ENVIRONMENT}, else ./Saved_Model"
    )
    saving.add_argument("--data-dir", type=Path, metavar="DIR", help=f"default: ${DATA_ENVIRONMENT}, else TFDS' own")
    how = parser.add_argument_group("how")
    how.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: mixed on GPUs that gain from it")
    how.add_argument("--devices", type=_positive, metavar="N", help="GPUs to share a batch out over; default: all")
    how.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the same bits in every run; without it a GPU may be faster, and no resume is exact",
    )
    how.add_argument("--xla", action=argparse.BooleanOptionalAction, default=False, help="compile the steps with XLA")
    return parser


def _natural(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _positive(text: str) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _at_least_two(text: str) -> int:
    if _positive(text) < 2:
        raise argparse.ArgumentTypeError("one checkpoint is not enough: if it is damaged there is none")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return rate


def _size(text: str) -> Size:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None or "0" in (match[1].lstrip("0") or "0", (match[2] or "1").lstrip("0") or "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: expected 96, or 96x128 (height x width)")
    return int(match[1]), int(match[2] or match[1])


def _interval(text: str) -> policy.Interval:
    try:
        return policy.parse_interval(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
