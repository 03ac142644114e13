"""python -m trainer.health: whether training moves, for Docker's HEALTHCHECK. Needs nothing but Python."""

from __future__ import annotations

import sys
import time

from trainer import progress
from trainer.directory import Directory, default_root

# Longer than a validation, a save on a slow disk or the compilation of a large network keeps progress.json waiting.
STALE_SECONDS = 300.0


def main() -> int:
    """0 when progress.json was replaced a short while ago, else 1; one line for `docker inspect`."""
    state = progress.read(Directory(default_root(), -1).progress)
    if not isinstance(state.get("time"), int | float):
        print("no step yet")
        return 1
    age = max(0.0, time.time() - state["time"])
    print(f"step {state.get('step')} of {state.get('total_steps')}, {age:.0f} s ago")
    return 0 if age < STALE_SECONDS or state.get("finished") else 1


if __name__ == "__main__":
    sys.exit(main())
