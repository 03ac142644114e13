"""The trainer's figures, beside those of Keras' own callbacks, all from one run on one machine.

    python benchmarks/trainer.py [--json] [--quick]

`--quick` uses pictures of 96x96 and fewer repetitions.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
# Run as a script, this file's own directory would shadow the package of the same name.
sys.path[0] = str(REPOSITORY)

from trainer import checkpoint, fingerprint  # noqa: E402

BATCH = 32
# Size of the pictures, cold starts, notices, seconds over which saving is measured.
FULL, QUICK = (300, 5, 5, 90.0), (96, 3, 3, 30.0)
PROMISED = {
    "step_over_floor": "at most 1.02",
    "cold_start_over_fit": "at most 0.55",
    "save_share": "at most 0.01",
    "signal_to_durable_seconds": "at most 1",
    "steps_lost_with_notice": "0",
    "torture_trials": "at least 200",
    "torture_unloadable": "0",
}


@dataclass(frozen=True)
class Bench:
    root: Path
    size: int
    starts: int
    notices: int
    save_seconds: float

    def environment(self, directory: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "TFDS_DATA_DIR": str(self.root / "data"),
            "CHECKPOINT_DIR": str(self.root / directory),
            "KERAS_HOME": str(self.root / "data" / ".keras"),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }

    def start(self, *command: str, directory: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *command],
            env=self.environment(directory),
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_trainer(self) -> subprocess.Popen[str]:
        job = ("--dataset", "silhouettes", "--image-size", str(self.size), "--epochs", "1000")
        return self.start("-m", "trainer", *job, directory="run")

    def child(self, *part: str) -> dict[str, Any]:
        process = self.start(__file__, "--part", *part, directory="keras")
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{part} failed:\n{output}")
        return dict(json.loads(output.splitlines()[-1]))

    def progress(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.root / "run" / "progress.json").read_bytes()))
        except (OSError, ValueError):
            return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        PARTS[options.part[0]](*options.part[1:])
        return
    with tempfile.TemporaryDirectory(prefix="trainer-benchmark-") as root:
        figures = measure(Bench(Path(root), *(QUICK if options.quick else FULL)))
    print(json.dumps(figures) if options.json else table(figures))


def table(figures: dict[str, Any]) -> str:
    """A row a figure, with what the trainer promises of it."""
    wide = max(map(len, figures))
    rows = [f"{name:{wide}}  {value!s:>24}  {PROMISED.get(name, '')}".rstrip() for name, value in figures.items()]
    return "\n".join([f"{'figure':{wide}}  {'measured':>24}  promised", *rows])


def measure(bench: Bench) -> dict[str, Any]:
    size, machine = str(bench.size), fingerprint.of_machine()
    say(f"torture: {TORTURE_TRIALS} kills inside a save")
    torture = torture_trainer(bench.root / "torture")
    say("saving and coming back (prepares the data set first)")
    running = notices_and_share(bench)
    say("step against floor")
    step = bench.child("step", size)
    say("cold starts")
    cold = cold_starts(bench)
    say("Keras' callbacks: how long they save, and what a kill leaves")
    keras = bench.child("callbacks")
    about = {"image_size": bench.size, "machine": f"{machine['threads']} x {machine['cpu']}"}
    return {**step, **cold, **running, **torture, **keras, **about}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- torture ------------------------------------------------------------------------------------------------

TORTURE_TRIALS = 200
TORTURE_SIZE = 500_000


def torture_trainer(directory: Path) -> dict[str, int]:
    """Kill a process that saves back to back until 200 kills came inside a save; load what each left."""
    chance = random.Random(0)
    inside = unloadable = 0
    while inside < TORTURE_TRIALS:
        directory.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            save_for_ever(directory)
        while not checkpoint.complete(directory):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        inside += any(path.name.endswith(".tmp") for path in directory.iterdir())
        newest, damaged = checkpoint.newest(directory)
        whole = newest is not None and (newest.tensors["weights"] == newest.meta["step"]).all()
        unloadable += not whole or bool(damaged)
        shutil.rmtree(directory)
    return {"torture_trials": inside, "torture_unloadable": unloadable}


def save_for_ever(directory: Path) -> None:
    step = 0
    while True:
        step += 1
        tensors = [("weights", np.full(TORTURE_SIZE, step, np.int64))]
        checkpoint.write(directory / checkpoint.file_name(step), {"step": step}, tensors)
        for old in checkpoint.complete(directory)[:-2]:
            old.unlink()


# --- saving and notices -------------------------------------------------------------------------------------


def wait_for(process: subprocess.Popen[str], condition: Callable[[], Any]) -> None:
    while not condition():
        if process.poll() is not None:
            raise SystemExit(f"the trainer ended:\n{process.stdout.read() if process.stdout else ''}")
        time.sleep(0.002)


def notices_and_share(bench: Bench) -> dict[str, Any]:
    """Train for a while with the default interval; then stop it with notice a few times, at any moment."""
    chance = random.Random(1)
    process = bench.start_trainer()
    wait_for(process, lambda: bench.progress().get("training_seconds", 0) > bench.save_seconds)
    said = bench.progress()
    durable, lost = [], []
    for _ in range(bench.notices):
        time.sleep(chance.uniform(0.5, 3.0))
        durable.append(stop_with_notice(bench, process))
        last = bench.progress()["step"]
        process = bench.start_trainer()
        await_steps_after(bench, process, last)
        lost.append(last - bench.progress()["resumed_from_step"])
    process.kill()
    process.communicate()
    return {
        "save_share": round(said["saving_seconds"] / said["training_seconds"], 5),
        "signal_to_durable_seconds": round(statistics.median(durable), 3),
        "signal_to_durable_seconds_most": round(max(durable), 3),
        "steps_lost_with_notice": max(lost),
    }


def await_steps_after(bench: Bench, process: subprocess.Popen[str], step: int) -> None:
    wait_for(process, lambda: bench.progress().get("step", 0) > step)


def stop_with_notice(bench: Bench, process: subprocess.Popen[str]) -> float:
    """Seconds from SIGTERM to the journal's line that the step under way is done and durable."""
    journal = bench.root / "run" / "log.txt"
    stops = journal.read_text().count("saved at step")
    begun = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    while journal.read_text().count("saved at step") == stops and process.poll() is None:
        time.sleep(0.001)
    took = time.perf_counter() - begun
    output, _ = process.communicate()
    if process.returncode != 75:
        raise SystemExit(f"the trainer ended with {process.returncode}:\n{output}")
    return took


# --- cold start ---------------------------------------------------------------------------------------------


def cold_starts(bench: Bench) -> dict[str, float]:
    """Process start to first new step after a resume: the trainer, and the same model under fit."""
    bench.child("fit", "begin", str(bench.size))
    ours, theirs = [], []
    for _ in range(bench.starts):
        ours.append(one_cold_start(bench))
        theirs.append(float(bench.child("fit", "resume", str(bench.size))["seconds"]))
    return {
        # Of pairs one after the other, so that what else the machine does at the time weighs on both.
        "cold_start_over_fit": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3),
        "cold_start_seconds": round(statistics.median(ours), 2),
        "cold_start_fit_seconds": round(statistics.median(theirs), 2),
    }


def one_cold_start(bench: Bench) -> float:
    before = bench.progress().get("resumes")
    process = bench.start_trainer()

    def under_way() -> bool:
        said = bench.progress()
        return said.get("resumes") != before and said.get("seconds_to_first_step") is not None

    wait_for(process, under_way)
    process.kill()
    process.communicate()
    return float(bench.progress()["seconds_to_first_step"])


def arrays(size: int) -> Any:
    from trainer import decoded

    folder = next((Path(os.environ["TFDS_DATA_DIR"]) / "decoded").glob(f"silhouettes-{size}x{size}-*"))
    return decoded.read(folder)


def keras_model(size: int) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV3Small((size, size, 3), weights=None, classes=2)
    model.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def part_fit(mode: str, size: str) -> None:
    """`begin` leaves a backup behind; `resume` goes on from it and tells when its first step was done."""
    import keras
    import tensorflow as tf

    from trainer.run import process_age

    class Stop(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if mode == "resume" or batch == 1:
                print(json.dumps({"seconds": process_age()}), flush=True)
                os._exit(0)

    data = arrays(int(size)).train
    model = keras_model(int(size))
    dataset = tf.data.Dataset.from_tensor_slices((data.images, data.labels)).batch(BATCH).prefetch(2)
    backup = keras.callbacks.BackupAndRestore(str(Path(os.environ["CHECKPOINT_DIR"]) / "backup"), save_freq=1)
    model.fit(dataset, epochs=100, verbose=0, callbacks=[backup, Stop()])


# --- step against floor -------------------------------------------------------------------------------------

PAIRS = 30


def part_step(size: str) -> None:
    """Interleaved pairs: one step on a resident batch, one with the pipeline."""
    import tensorflow as tf

    from trainer import options, session
    from trainer.data import Batches

    flags = ["--image-size", size, "--batch-size", str(BATCH)]
    dataset = arrays(int(size))
    network = session.build(options.parse(flags), dataset.train.images.shape[1:], 2)
    batches = Batches(dataset.train.images, dataset.train.labels, batch_size=BATCH, seed=0)
    weights = np.ones(BATCH, np.float32)
    resident = [tf.constant(array) for array in (*next(batches.of_epoch(0)), weights)]
    feed = (batch for epoch in range(1000) for batch in batches.of_epoch(epoch))

    def floor() -> None:
        network.train(*resident)

    def real() -> None:
        images, labels = next(feed)
        network.train(images, labels, weights)

    for step in (floor, real, floor, real):
        step()
    # Which of the two comes first changes from pair to pair.
    pairs = [(seconds(floor), seconds(real)) for _ in range(PAIRS // 2)]
    pairs += [tuple(reversed((seconds(real), seconds(floor)))) for _ in range(PAIRS // 2)]  # type: ignore[misc]
    over = statistics.median(real / floor for floor, real in pairs)
    median = statistics.median(real for _, real in pairs)
    print(json.dumps({"step_over_floor": round(over, 4), "step_seconds": round(median, 4)}))


def seconds(action: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


# --- Keras' callbacks ---------------------------------------------------------------------------------------

STALLS = 7
KERAS_TRIALS = 20


def ways(model: Any, root: Path) -> dict[str, Callable[[], Any]]:
    """A save by the trainer, and by each of Keras' callbacks as `fit` has them do it after a batch."""
    import keras

    from trainer.variables import Variables

    state = Variables(model, model.optimizer)
    backup = keras.callbacks.BackupAndRestore(root / "backup", save_freq=1)
    whole = keras.callbacks.ModelCheckpoint(root / "model.keras", save_freq=1)
    for callback in (backup, whole):
        callback.set_model(model)
        callback.on_epoch_begin(0)
    return {
        "save": lambda: checkpoint.write(root / checkpoint.file_name(1), {"step": 1}, state.tensors()),
        "backup_and_restore": lambda: backup.on_train_batch_end(0, {}),
        "model_checkpoint": lambda: whole.on_train_batch_end(0, {}),
    }


def part_callbacks() -> None:
    """How long training stands still for each way to save, and what kills inside a save leave."""
    import keras

    root = Path(os.environ["CHECKPOINT_DIR"])
    root.mkdir(parents=True, exist_ok=True)
    model = keras_model(96)
    figures: dict[str, Any] = {
        f"{name}_seconds": round(statistics.median(seconds(save) for _ in range(STALLS)), 4)
        for name, save in ways(model, root).items()
    }
    readers: dict[str, Callable[[Path], Any]] = {
        "backup_and_restore": lambda left: restore_backup(model, left),
        "model_checkpoint": lambda left: keras.saving.load_model(left / "model.keras"),
    }
    for name, read in readers.items():
        figures[f"{name}_torture_trials"] = KERAS_TRIALS
        figures[f"{name}_torture_unloadable"] = unloadable_after_kills(name, read, root)
    print(json.dumps(figures))


def restore_backup(model: Any, left: Path) -> None:
    """What `fit` does first when BackupAndRestore is among its callbacks."""
    import keras

    backup = keras.callbacks.BackupAndRestore(left / "backup")
    backup.set_model(model)
    backup.on_train_begin()


def unloadable_after_kills(way: str, read: Callable[[Path], Any], root: Path) -> int:
    """Halt a process that saves back to back at any moment: its folder is what kill -9 leaves then."""
    chance, unloadable = random.Random(2), 0
    working = root / way
    working.mkdir()
    child = subprocess.Popen([sys.executable, __file__, "--part", "save", way, str(working)])
    while not (working / "ready").exists():
        time.sleep(0.01)
    for trial in range(KERAS_TRIALS):
        time.sleep(chance.uniform(0.1, 0.6))
        child.send_signal(signal.SIGSTOP)
        left = root / f"{way}-{trial}"
        shutil.copytree(working, left)
        child.send_signal(signal.SIGCONT)
        try:
            read(left)
        except (OSError, ValueError, KeyError):
            unloadable += 1
        shutil.rmtree(left)
    child.kill()
    child.wait()
    return unloadable


def part_save(way: str, directory: str) -> None:
    save = ways(keras_model(96), Path(directory))[way]
    save()
    (Path(directory) / "ready").touch()
    while True:
        save()


PARTS: dict[str, Callable[..., None]] = {
    "fit": part_fit,
    "step": part_step,
    "callbacks": part_callbacks,
    "save": part_save,
}

if __name__ == "__main__":
    main()
