"""Training as a process: killed, stopped, resumed, refused. All through `python -m trainer`."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trainer import checkpoint, precision
from trainer.progress import Progress

from .conftest import REPOSITORY, Trainer

TINY = ("--dataset", "tiny:data", "--model", "tiny:model", "--batch-size", "8")
JOB = (*TINY, "--epochs", "40", "--checkpoint-interval", "10")
STEPS_PER_EPOCH = 12
TOTAL = 40 * STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The same job, left alone to its end."""
    trainer = Trainer(tmp_path_factory.mktemp("alone"))
    code, output = trainer.run(*JOB)
    assert code == 0, output
    return trainer


def rows(trainer: Trainer) -> list[dict[str, str]]:
    with (trainer.directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def without_time(table: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "elapsed_seconds"} for row in table]


def events(trainer: Trainer) -> list[tuple[str, str, int]]:
    """(part, tag, step) of everything that TensorBoard would show, read from the raw files."""
    from tensorboard.compat.proto.event_pb2 import Event

    found = []
    for path in (trainer.directory / "tensorboard").rglob("events.out.tfevents.*"):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(path.parent.name, value.tag, event.step) for value in event.summary.value]
            at += 16 + length
    return found


def test_a_training_left_alone_leaves_everything_that_is_promised(alone: Trainer) -> None:
    progress = alone.progress()
    assert (progress["step"], progress["total_steps"], progress["epoch"]) == (TOTAL, TOTAL, 40)
    assert progress["finished"] is True and progress["resumes"] == 0
    assert progress["resumed_from_step"] is None and progress["saved_step"] == TOTAL
    assert len(progress["digest"]) == 64 and progress["digest"] in alone.journal()
    assert set(progress["metrics"]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert progress["metrics"]["val_accuracy"] >= 0.95
    assert alone.journal().startswith("Training has begun at: ")
    assert "Training has finished at: " in alone.journal()
    assert len(alone.steps()) == 2
    assert [row["epoch"] for row in rows(alone)] == [str(number) for number in range(1, 41)]
    for name in ("best.keras", "final.keras"):
        assert (alone.directory / name).exists()
    assert not [path for path in alone.directory.rglob(".*") if path.name != ".lock"]
    tags = {(part, tag) for part, tag, _ in events(alone)}
    assert {("train", "epoch_loss"), ("validation", "epoch_accuracy"), ("train", "checkpoints")} <= tags


def test_started_again_after_the_end_it_says_so_at_once(alone: Trainer) -> None:
    before = alone.journal()
    code, output = alone.run(*JOB)
    assert code == 0 and "finished already" in output
    assert alone.journal() == before


def test_killed_and_stopped_it_ends_with_the_same_bits(alone: Trainer, trainer: Trainer) -> None:
    process = trainer.start(*JOB)
    trainer.await_step(process, 50)
    trainer.stop(process, signal.SIGKILL)

    process = trainer.start(*JOB)
    first = trainer.await_step(process, 120)
    process.send_signal(signal.SIGTERM)
    code, output = trainer.stop(process)
    assert code == 75, output
    stopped_at = trainer.progress()["step"]
    assert trainer.progress()["saved_step"] == stopped_at == trainer.steps()[-1] >= first

    # Damage the newest: the one before it must do.
    newest = trainer.directory / "checkpoints" / f"{stopped_at:010d}.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    code, output = trainer.run(*JOB)
    assert code == 0, output

    journal = trainer.journal()
    assert f"Damaged checkpoint: {newest.name}" in journal
    assert journal.count("Training has resumed at: ") == 2 and journal.count("Training has begun at: ") == 1
    assert journal.count("Resuming from Epoch Number: ") == 2
    progress = trainer.progress()
    assert progress["resumes"] == 2 and 0 < progress["resumed_from_step"] < stopped_at
    assert progress["digest"] == alone.progress()["digest"]
    # Metrics of the interrupted epochs cover all of their steps, and no row is there twice.
    assert without_time(rows(trainer)) == without_time(rows(alone))
    elapsed = [float(row["elapsed_seconds"]) for row in rows(trainer)]
    assert elapsed == sorted(elapsed)
    twice = [point for point, count in Counter(events(trainer)).items() if count > 1]
    assert not twice
    assert ("train", "resumes", progress["resumed_from_step"]) in events(trainer)


def test_shared_out_over_two_devices_a_killed_training_ends_with_the_same_bits(
    tmp_path: Path, trainer: Trainer
) -> None:
    job = (*TINY, "--epochs", "20", "--checkpoint-interval", "10", "--devices", "2")
    alone = Trainer(tmp_path / "alone")
    alone.root.mkdir()
    code, output = alone.run(*job)
    assert code == 0, output

    process = trainer.start(*job)
    trainer.await_step(process, 50)
    trainer.stop(process, signal.SIGKILL)
    code, output = trainer.run(*job)
    assert code == 0, output
    assert trainer.progress()["resumes"] == 1
    assert trainer.progress()["digest"] == alone.progress()["digest"]
    assert without_time(rows(trainer)) == without_time(rows(alone))

    saved, _ = checkpoint.newest(trainer.directory / "checkpoints")
    assert saved is not None and saved.meta["fingerprint"]["devices"] == "2 CPU"
    second = {name.removesuffix("@1"): array for name, array in saved.tensors.items() if name.endswith("@1")}
    kernels = [name for name in second if "kernel" in name]
    assert len(kernels) >= 9, "three layers, each with its weights and two slots of the optimizer"
    for name in kernels:
        assert np.array_equal(second[name], saved.tensors[name]), name


@pytest.mark.parametrize(
    ("asked", "gpus", "chosen"),
    [
        ("auto", [], "float32"),
        ("auto", [(6, 1)], "float32"),
        ("auto", [(7, 5)], "mixed_float16"),
        ("auto", [(9, 0), (8, 0)], "mixed_bfloat16"),
        ("auto", [(9, 0), (7, 0)], "mixed_float16"),
        ("float32", [(9, 0)], "float32"),
    ],
)
def test_mixed_precision_is_for_devices_that_gain_from_it(asked: str, gpus: list[tuple[int, int]], chosen: str) -> None:
    assert precision.choose(asked, gpus) == chosen


def test_stopped_in_its_validation_it_validates_again(trainer: Trainer) -> None:
    job = (*TINY, "--epochs", "1", "--checkpoint-interval", str(STEPS_PER_EPOCH))
    environment = {"TINY_VALIDATION": "8000"}
    process = trainer.start(*job, env=environment)
    trainer.await_step(process, STEPS_PER_EPOCH)
    code, output = trainer.stop(process)
    assert code == 75, output
    assert not (trainer.directory / "metrics.csv").exists(), "the epoch was over before it was stopped"
    code, output = trainer.run(*job, env=environment)
    assert code == 0, output
    (row,) = rows(trainer)
    assert row["step"] == str(STEPS_PER_EPOCH) and float(row["val_accuracy"]) > 0
    assert {("train", "epoch_loss", STEPS_PER_EPOCH), ("validation", "epoch_loss", STEPS_PER_EPOCH)} <= {
        *events(trainer)
    }
    assert "0 steps lost" in trainer.journal()


def test_stopped_before_its_first_step_it_ends_at_once(trainer: Trainer) -> None:
    process = trainer.start(*JOB)
    # In the midst of importing TensorFlow, which takes seconds.
    trainer.await_(process, lambda: "tensorflow" in Path(f"/proc/{process.pid}/maps").read_text())
    code, _ = trainer.stop(process)
    assert code == 75
    assert "before its first step" in trainer.journal() and not trainer.steps()


def limit_file_size() -> None:
    """The state of tiny:large is 12 MB. A file that would grow larger than this fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))


def test_where_nothing_can_be_saved_training_goes_on_loudly_and_the_last_checkpoint_stays(
    trainer: Trainer,
) -> None:
    job = (
        "--dataset",
        "tiny:data",
        "--model",
        "tiny:large",
        "--batch-size",
        "8",
        "--checkpoint-interval",
        "6",
    )
    code, output = trainer.run(*job, "--epochs", "1")
    assert code == 0, output
    good = trainer.steps()
    code, output = trainer.run(*job, "--epochs", "3", "--seed", "2", preexec_fn=limit_file_size)
    assert code == 1
    assert "Checkpoint NOT saved" in output and "Training goes on" in output
    assert f"the last good checkpoint is at step {good[-1]}" in output
    assert "step 36" in output and "result could not be saved" in output
    assert trainer.steps() == good
    assert "Exactness is no longer promised" in trainer.journal() and "seed was 0, is 2" in trainer.journal()
    assert not list(trainer.directory.rglob("*.tmp"))

    # With room again it ends, although the best model was damaged meanwhile.
    (trainer.directory / "best.ckpt").write_bytes(b"TRAINER1")
    code, output = trainer.run(*job, "--epochs", "1")
    assert code == 0, output
    assert "The best model cannot be read" in output and (trainer.directory / "best.keras").exists()


FAILING = ("--dataset", "tiny:data", "--model", "failing:model", "--batch-size", "8")
REASONS = ("MemoryError", "RuntimeError: Unable to synchronously write", "ValueError: not a group")


@pytest.mark.parametrize(("failing", "background"), [("write", "1"), ("snapshot", "1"), ("write", "0")])
def test_a_save_that_fails_for_another_reason_than_the_disk_is_told_and_tried_again(
    trainer: Trainer, failing: str, background: str
) -> None:
    environment = {"FAILING": failing, "FAILS": "3", "BACKGROUND": background}
    code, output = trainer.run(*FAILING, "--epochs", "6", "--checkpoint-interval", "10", env=environment)
    assert code == 0, output
    journal = trainer.journal()
    for reason in REASONS:
        assert f": {reason}. Training goes on; there is no checkpoint yet" in journal, journal
    assert "Checkpoint saved at: " in journal
    assert trainer.steps()[-1] == 72


def test_where_nothing_can_be_saved_for_another_reason_than_the_disk_who_stops_it_and_its_end_say_so(
    trainer: Trainer,
) -> None:
    environment = {"FAILING": "write", "FAILS": "1000000", "BACKGROUND": "1"}
    process = trainer.start(*FAILING, "--epochs", "1000", "--checkpoint-interval", "10", env=environment)
    trainer.await_(process, lambda: (trainer.directory / "log.txt").exists() and "NOT saved" in trainer.journal())
    code, output = trainer.stop(process)
    assert code == 75, output
    assert "could NOT be saved" in output and "Traceback" not in output
    code, output = trainer.run(*FAILING, "--epochs", "1", env=environment)
    assert code == 1 and "result could not be saved" in output and "Traceback" not in output


def test_a_best_model_that_cannot_be_kept_for_another_reason_than_the_disk_ends_no_training(trainer: Trainer) -> None:
    environment = {"FAILING": "best", "FAILS": "1", "BACKGROUND": "0"}
    code, output = trainer.run(*FAILING, "--epochs", "2", env=environment)
    assert code == 0, output
    assert f"The best model so far could NOT be kept: {REASONS[0]}" in output


def test_a_loss_that_has_diverged_leaves_json_that_any_reader_takes(tmp_path: Path) -> None:
    Progress(tmp_path / "progress.json").write({"step": 1, "metrics": {"loss": math.nan, "accuracy": 0.5}})
    said = json.loads((tmp_path / "progress.json").read_text(), parse_constant=pytest.fail)
    assert said["metrics"] == {"loss": None, "accuracy": 0.5}


# --- what is refused ------------------------------------------------------------------------------------


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_directory_of_another_job_is_refused_and_left_as_it_is(alone: Trainer) -> None:
    before = contents(alone.directory)
    code, output = alone.run("--dataset", "tiny:data", "--model", "tiny:flat")
    assert code == 2
    assert "model tiny:model" in output and "model tiny:flat" in output
    assert contents(alone.directory) == before


def test_a_second_trainer_in_the_same_directory_is_refused(trainer: Trainer) -> None:
    process = trainer.start(*JOB)
    trainer.await_(process, (trainer.directory / ".lock").exists)
    code, output = trainer.run(*JOB)
    assert code == 1 and "another trainer is at work" in output


@pytest.mark.parametrize(
    "flags",
    [
        ("--epochs", "0"),
        ("--epochs", "many"),
        ("--batch-size", "-1"),
        ("--learning-rate", "-0.1"),
        ("--learning-rate", "nan"),
        ("--image-size", "0"),
        ("--image-size", "64x"),
        ("--checkpoint-interval", "-5"),
        ("--keep", "1"),
        ("--seed", "-1"),
        ("--precision", "half"),
        ("--nonsense",),
    ],
)
def test_a_flag_that_cannot_be_is_refused_before_anything_happens(trainer: Trainer, flags: tuple[str, ...]) -> None:
    code, output = trainer.run(*flags)
    assert code == 2 and flags[0] in output
    assert not trainer.directory.exists()


def imported(trainer: Trainer, *flags: str) -> set[str]:
    script = (
        "import sys; from trainer.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, *flags], env=trainer.environment(), capture_output=True, text=True
    )
    return set(answer.stderr.split())


def test_help_and_wrong_flags_import_nothing_heavy(trainer: Trainer) -> None:
    for flags in (("--help",), ("--epochs", "-1")):
        assert not imported(trainer, *flags) & {"tensorflow", "keras", "numpy", "tensorflow_datasets"}


def test_without_tensorflow_the_error_names_the_extra(trainer: Trainer) -> None:
    # -S leaves the installed packages out.
    code, output = trainer.run(program=("-S", "-m", "trainer"))
    assert code == 1
    assert "pip install 'cloudtrain[trainer]'" in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--dataset", "tiny:data", "--model", "tiny:model", "--batch-size", "97"), ["97", "96"]),
        (("--dataset", "tiny:data", "--model", "MobileNetV3Smal"), ["MobileNetV3Smal", "MobileNetV3Small"]),
        (("--dataset", "tiny:data", "--model", "MobileNetV3Small"), ["12x12", "32x32"]),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(trainer: Trainer, flags: tuple[str, ...], named: list[str]) -> None:
    code, output = trainer.run(*flags)
    assert code == 2 and "Traceback" not in output
    for name in named:
        assert name in output


def test_a_checkpoint_directory_that_cannot_be_made_is_a_clear_error(trainer: Trainer) -> None:
    trainer.directory.write_text("a file")
    code, output = trainer.run(*JOB)
    assert code == 1 and "nothing could be saved" in output and "--checkpoint-dir" in output


def test_the_trainer_imports_nothing_of_the_command_line_tool() -> None:
    for path in (REPOSITORY / "trainer").rglob("*.py"):
        assert "cloudtrain" not in path.read_text().replace("cloudtrain[trainer]", ""), path


def test_on_a_terminal_a_bar_is_drawn_and_elsewhere_no_control_character(alone: Trainer, trainer: Trainer) -> None:
    reader, terminal = os.openpty()
    job = (*TINY, "--epochs", "2")
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *job],
        env=trainer.environment(),
        cwd=trainer.root,
        stdout=terminal,
        stderr=subprocess.DEVNULL,
    )
    os.close(terminal)
    shown = b"".join(iter(lambda: read_terminal(reader), b""))
    assert process.wait(60) == 0
    assert b"[" in shown and b"epoch 1/2" in shown and b"\x1b[2K" in shown
    assert "\x1b" not in alone.journal()


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""
