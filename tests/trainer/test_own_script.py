"""The guarantees in a user's own script: the example of README for `model.fit`, and a custom loop."""

from __future__ import annotations

import csv
import importlib.util
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from .conftest import HERE, REPOSITORY, Trainer

README = REPOSITORY / "README.md"


def test_the_example_in_readme_is_the_one_that_is_tested() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text() if README.exists() else "", re.DOTALL)
    examples = [block for block in blocks if "trainer.resume(" in block]
    if not examples:
        pytest.skip("README.md has no Python block with trainer.resume")
    assert examples == [(HERE / "own_fit.py").read_text()]


def table(trainer: Trainer) -> list[dict[str, str]]:
    with (trainer.directory / "metrics.csv").open() as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key != "elapsed_seconds"} for row in rows]


# A save every few steps, so that an interruption comes in the middle of an epoch; and fewer of those.
IN_A_TEST = [("epochs=30)", 'epochs=8, interval="10")'), ("epochs=60,", "epochs=20,")]
# Asked to stop while `fit` validates, at a step that $STOP_AT names.
STOPPING = """
class Stopping(keras.callbacks.Callback):
    def on_test_batch_begin(self, batch, logs=None):
        if os.environ.get("STOP_AT") == str(run.step):
            os.kill(os.getpid(), signal.SIGTERM)


data = trainer.ResumableData("""


def script_of(tmp_path: Path, name: str) -> Path:
    text = (HERE / name).read_text()
    stopping = [("import keras\n", "import os\nimport signal\n\nimport keras\n"), ("[run.", "[Stopping(), run.")]
    stopping.append(("data = trainer.ResumableData(", STOPPING.lstrip()))
    for before, after in [*IN_A_TEST, *stopping]:
        text = text.replace(before, after)
    file = tmp_path / "script.py"
    file.write_text(text)
    return file


def left_alone(tmp_path: Path, file: Path, **environment: str) -> Trainer:
    alone = Trainer(tmp_path / "alone")
    alone.root.mkdir()
    code, output = alone.run(program=(str(file),), env=environment)
    assert code == 0, output
    return alone


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_fit_that_is_interrupted_ends_with_the_same_bits(tmp_path: Path, trainer: Trainer, backend: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    file, keras_on = script_of(tmp_path, "own_fit.py"), {"KERAS_BACKEND": backend}
    alone = left_alone(tmp_path, file, **keras_on)

    # In the validation of the second epoch; its last step is done again, so that the epoch ends whole.
    code, output = trainer.run(program=(str(file),), env={**keras_on, "STOP_AT": "64"})
    assert code == 75, output
    assert trainer.steps()[-1] == 63

    process = trainer.start(program=(str(file),), env=keras_on)
    trainer.await_step(process, 120)
    assert trainer.stop(process, signal.SIGKILL)[0] == -signal.SIGKILL
    ended, output = trainer.run(program=(str(file),), env=keras_on)
    assert ended == 0, output

    assert trainer.progress()["resumes"] == 2 and trainer.progress()["finished"]
    assert trainer.progress()["digest"] == alone.progress()["digest"]
    assert table(trainer) == table(alone) and len(table(alone)) == 8


def test_a_custom_loop_that_is_interrupted_ends_with_the_same_bits(tmp_path: Path, trainer: Trainer) -> None:
    file = script_of(tmp_path, "own_loop.py")
    alone = left_alone(tmp_path, file)

    process = trainer.start(program=(str(file),))
    trainer.await_step(process, 150)
    assert trainer.stop(process, signal.SIGKILL)[0] == -signal.SIGKILL
    ended, output = trainer.run(program=(str(file),))
    assert ended == 0, output

    assert trainer.progress()["resumes"] == 1 and trainer.progress()["finished"]
    assert trainer.progress()["digest"] == alone.progress()["digest"]
    assert table(trainer) == table(alone) and len(table(alone)) == 20


def test_what_cannot_work_is_refused_by_name(trainer: Trainer) -> None:
    code, output = trainer.run(program=(str(HERE / "misused.py"),))
    assert code == 0, output
    said = dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)
    assert said["batch"] == "batch_size should be 1 to 8, the number of examples; it is 9"
    assert said["lengths"] == "there are 5 inputs and 8 targets"
    assert said["optimizer"].startswith("there is no optimizer")
    assert said["execution"] == "each step has to be seen: steps_per_execution is 2, not 1"
    assert "'-5'" in said["interval"] and "expected auto" in said["interval"]
    assert said["fit"].startswith("call fit once for each epoch")
    assert said["epoch"] == "epoch 2 was not ended: call epoch_done()"
    assert "there job a; here job b" in said["job"]
    assert "kernel has shape (2, 3), not (2, 4)" in said["shapes"]
