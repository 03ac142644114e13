"""A trainer that survives eviction: exact checkpoints, exact resume. Knows nothing of any cloud.

`python -m trainer` trains an image classifier. In a script of your own, `resume` gives any Keras model the
same guarantees; see its docstring.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.adam import FusedAdam
    from trainer.resumable import ResumableData, ResumableRun, resume

__all__ = ["FusedAdam", "ResumableData", "ResumableRun", "resume"]

# Imported on first use: `python -m trainer` must be able to catch SIGTERM before Keras is imported.
_HOMES = {
    "FusedAdam": "adam",
    "ResumableData": "resumable",
    "ResumableRun": "resumable",
    "resume": "resumable",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"trainer.{_HOMES[name]}"), name)
