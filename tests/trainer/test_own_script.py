"""The guarantees in a user's own script: the example of README for `model.fit`, and a custom loop."""

from __future__ import annotations

import csv
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


@pytest.mark.parametrize(
    ("script", "number", "code"), [("own_fit.py", signal.SIGTERM, 75), ("own_loop.py", signal.SIGKILL, -9)]
)
def test_a_script_that_is_interrupted_ends_with_the_same_bits(
    tmp_path: Path, trainer: Trainer, script: str, number: int, code: int
) -> None:
    file = tmp_path / "script.py"
    # A save every few steps, so that the interruption comes in the middle of an epoch.
    file.write_text((HERE / script).read_text().replace("epochs=30)", 'epochs=30, interval="50")'))
    alone = Trainer(tmp_path / "alone")
    alone.root.mkdir()
    assert alone.run(program=(str(file),))[0] == 0

    process = trainer.start(program=(str(file),))
    trainer.await_step(process, 150)
    assert trainer.stop(process, number)[0] == code
    ended, output = trainer.run(program=(str(file),))
    assert ended == 0, output

    assert trainer.progress()["resumes"] == 1 and trainer.progress()["finished"]
    assert trainer.progress()["digest"] == alone.progress()["digest"]
    assert table(trainer) == table(alone)
