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


@pytest.mark.parametrize("script", ["own_fit.py", "own_loop.py"])
def test_a_script_that_is_killed_and_stopped_ends_with_the_same_bits(
    tmp_path: Path, trainer: Trainer, script: str
) -> None:
    file = tmp_path / "script.py"
    # A save every few steps, so that the kills come in the middle of an epoch.
    file.write_text((HERE / script).read_text().replace("epochs=30)", 'epochs=30, interval="50")'))
    alone = Trainer(tmp_path / "alone")
    alone.root.mkdir()
    code, output = alone.run(program=(str(file),))
    assert code == 0, output

    process = trainer.start(program=(str(file),))
    trainer.await_step(process, 150)
    trainer.stop(process, signal.SIGKILL)
    process = trainer.start(program=(str(file),))
    trainer.await_step(process, 400)
    code, output = trainer.stop(process)
    assert code == 75, output
    code, output = trainer.run(program=(str(file),))
    assert code == 0, output

    assert trainer.progress()["resumes"] == 2 and trainer.progress()["finished"]
    assert trainer.progress()["digest"] == alone.progress()["digest"]
    assert table(trainer) == table(alone)
    assert "0 steps lost" in trainer.journal()
