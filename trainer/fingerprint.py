"""What exactness depends on. Two runs with the same fingerprint end with the same bits."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "numpy", "jax", "torch")
# Of the environment: what chooses kernels and the number of threads in them.
SETTINGS = (
    "TF_ENABLE_ONEDNN_OPTS",
    "ONEDNN_MAX_CPU_ISA",
    "TF_NUM_INTRAOP_THREADS",
    "OMP_NUM_THREADS",
    "XLA_FLAGS",
    "NVIDIA_TF32_OVERRIDE",
)


def of_machine() -> dict[str, str]:
    """Versions, processor and threads. TensorFlow's CPU kernels are chosen by instruction set and threads."""
    model, flags = _processor()
    return {
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
        "cpu": model,
        "cpu_flags": flags,
        "threads": str(len(os.sched_getaffinity(0))),
        **{name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> tuple[str, str]:
    """The model's name and a short digest of its flags."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    flags = " ".join(sorted(fields.get("flags", fields.get("Features", "")).split()))
    return fields.get("model name", platform.machine()), hashlib.sha256(flags.encode()).hexdigest()[:12]
