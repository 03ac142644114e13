"""Which devices to train on, at which precision. To be called before any model is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from trainer import precision
from trainer.errors import Refused
from trainer.options import Options


@dataclass(frozen=True)
class Devices:
    """`name` is what the GPUs call themselves, else `CPU`."""

    strategy: Any
    count: int
    kind: str
    name: str
    precision: str


def set_up(options: Options) -> Devices:
    """Configure TensorFlow and Keras. Raises Refused when the devices asked for are not there."""
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
    kind = "GPU" if gpus else "CPU"
    count = options.devices or max(1, len(gpus))
    if gpus and count > len(gpus):
        raise Refused(f"{count} GPUs were asked for, this machine has {len(gpus)}")
    if options.batch_size % count:
        hint = f"--batch-size {count * max(1, options.batch_size // count)}, or fewer --devices"
        raise Refused(f"a batch of {options.batch_size} cannot be shared out equally over {count} devices", hint=hint)
    if gpus:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    else:
        _configure_cpu(count)
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus[:count]]
    capabilities = [tuple(detail.get("compute_capability", (0, 0))) for detail in details]
    chosen = precision.choose(options.precision, capabilities)
    keras.mixed_precision.set_global_policy(chosen)
    name = ", ".join(sorted({detail.get("device_name", kind) for detail in details})) or kind
    return Devices(_strategy(kind, count), count, kind, name, chosen)


def _configure_cpu(count: int) -> None:
    # Half of the first step's time goes into grappler; the steps themselves are no faster for it on a CPU
    # (measured: 5.15 s against 5.8 s to the first step, 472 against 473 ms a step).
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
        tf.config.set_logical_device_configuration(cpu, parts)


def _strategy(kind: str, count: int) -> Any:
    if count == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([f"{kind}:{number}" for number in range(count)])
