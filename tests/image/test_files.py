"""What the image is made from, as far as it can be told without an engine."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_image_gets_the_packages_of_the_trainer_extra() -> None:
    """TensorFlow apart, which the Dockerfile takes from the base image or installs as the variant says."""
    lines = (ROOT / "trainer" / "requirements.txt").read_text().splitlines()
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["trainer"]
    tensorflow = [each for each in wanted if each.startswith("tensorflow") and "datasets" not in each]
    assert [line for line in lines if line and not line.startswith("#")] == [w for w in wanted if w not in tensorflow]
    (version,) = {each.partition(">=")[2].partition(";")[0].strip() for each in tensorflow}
    assert f'"$TENSORFLOW>={version}"' in (ROOT / "Dockerfile").read_text()
