"""A model whose saves fail, for `--model failing:model`. What fails stands in the environment:

FAILING      write: putting a checkpoint on disk; snapshot: copying the variables; best: keeping the best model
FAILS        how often, from the beginning on
BACKGROUND   1: all writes are made beside training; 0: none
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import tiny

from trainer import checkpoint, policy
from trainer.export import BestModel
from trainer.variables import Variables

BEYOND_THE_DISK = (MemoryError(), RuntimeError("Unable to synchronously write"), ValueError("not a group"))


def model(image_shape: tuple[int, int, int], classes: int) -> Any:
    owner, name = {
        "write": (checkpoint, "write"),
        "snapshot": (Variables, "tensors"),
        "best": (BestModel, "keep"),
    }[os.environ["FAILING"]]
    patch.object(owner, name, failing(getattr(owner, name))).start()
    patch.object(policy, "in_background", lambda **_: os.environ["BACKGROUND"] == "1").start()
    return tiny.model(image_shape, classes)


def failing(plain: Callable[..., Any]) -> Callable[..., Any]:
    left = int(os.environ["FAILS"])

    def call(*arguments: Any) -> Any:
        nonlocal left
        if arguments and getattr(arguments[0], "name", "") == "best.ckpt":
            return plain(*arguments)
        left -= 1
        if left < 0:
            return plain(*arguments)
        raise BEYOND_THE_DISK[left % len(BEYOND_THE_DISK)]

    return call
