"""The trainer's image, run as a VM runs it."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker_parts import built

from .making import dockerfile, planned

pytestmark = pytest.mark.docker
TRAINER = 10001  # the image's user without rights
TINY = ["--dataset", "silhouettes", "--image-size", "32", "--batch-size", "64", "--epochs", "3"]


@pytest.fixture
def run(engine: Any) -> Iterator[Callable[..., Any]]:
    """Starts containers; removes them."""
    started = []

    def start(image: str, *arguments: str, **options: Any) -> Any:
        container = engine.containers.run(image, list(arguments), detach=True, **options)
        started.append(container)
        return container

    yield start
    for container in started:
        container.remove(force=True, v=True)


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """As the guest makes it: any user may write."""
    folder = tmp_path / "models"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def volumes(mount: Path) -> dict[str, dict[str, str]]:
    return {str(mount): {"bind": "/app/Saved_Model", "mode": "rw"}}


def ended(container: Any) -> int:
    code: int = container.wait(timeout=120)["StatusCode"]
    print(container.logs().decode(errors="replace")[-3000:])  # shown when a test fails
    return code


def progress(mount: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((mount / "progress.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def test_it_trains_saves_on_sigterm_with_75_and_resumes(run: Any, trainer_image: str, mount: Path) -> None:
    first = run(trainer_image, *TINY, init=True, volumes=volumes(mount))
    end = time.monotonic() + 120
    while progress(mount).get("step", 0) < 2:
        first.reload()
        assert time.monotonic() < end and first.status == "running", first.logs().decode()[-2000:]
        time.sleep(0.05)
    assert str(TRAINER) in {
        row[0] for row in first.top(ps_args="-eo uid,pid,args")["Processes"] if "-m trainer" in row[2]
    }
    health = first.exec_run(["python3", "-m", "trainer.health"])
    assert health.exit_code == 0 and b"step " in health.output
    first.kill("SIGTERM")
    assert ended(first) == 75
    saved = progress(mount)["saved_step"]
    assert saved >= 2 and {path.stat().st_uid for path in mount.iterdir()} == {TRAINER}
    second = run(trainer_image, *TINY, init=True, volumes=volumes(mount))
    assert ended(second) == 0
    state = progress(mount)
    assert state["finished"] and state["resumed_from_step"] == saved and state["step"] == state["total_steps"]


def test_sigterm_reaches_the_trainer_without_an_init_too(run: Any, trainer_image: str, mount: Path) -> None:
    alone = run(trainer_image, *TINY, volumes=volumes(mount))
    end = time.monotonic() + 60
    while b"silhouettes" not in alone.logs():  # its first words: the handler is in place
        assert time.monotonic() < end
        time.sleep(0.05)
    alone.kill("SIGTERM")
    assert ended(alone) == 75


def who(run: Any, image: str, mount: Path, **options: Any) -> tuple[int, str]:
    """The user that the trainer would run as, and what is said about it."""
    command = ["/app/trainer/entrypoint.sh", "id", "-u"]
    container = run(image, *command, entrypoint="sh", volumes=volumes(mount), **options)
    assert ended(container) == 0
    return int(container.logs(stdout=True, stderr=False)), container.logs(stdout=False, stderr=True).decode()


def test_it_is_root_only_where_the_mount_leaves_no_choice(run: Any, trainer_image: str, mount: Path) -> None:
    assert who(run, trainer_image, mount) == (TRAINER, "")
    assert who(run, trainer_image, mount, user="1234") == (1234, "")
    (mount / "checkpoints").mkdir(mode=0o755)  # left by an image that runs as root
    uid, said = who(run, trainer_image, mount)
    assert uid == 0 and "/app/Saved_Model" in said
    (mount / "checkpoints").rmdir()
    mount.chmod(0o755)  # the tutorial's mkdir, by root
    assert who(run, trainer_image, mount)[0] == 0


def test_it_tells_where_it_comes_from_and_how_it_is(engine: Any, trainer_image: str, base_image: str) -> None:
    config = engine.images.get(trainer_image).attrs["Config"]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["title"] and labels["version"] and labels["base.name"] == base_image
    assert config["Healthcheck"]["Test"] == ["CMD", "python3", "-m", "trainer.health"]


def test_an_image_as_in_the_tutorial_is_built_and_runs(
    run: Any, engine: Any, base_image: str, tmp_path: Path, mount: Path
) -> None:
    """A script that knows nothing of us, started by CMD, writing to /app/Saved_Model."""
    root = dockerfile(
        tmp_path / "a",
        f"FROM {base_image}",
        "WORKDIR /app",
        "COPY . .",
        "RUN mkdir Saved_Model",
        'CMD ["python3", "main.py"]',
    )
    (root / "main.py").write_text("open('Saved_Model/Models.01-0.50.hdf5', 'w').write('weights')\n")
    image = built(engine, planned(root, repository="cloudtrain-test/tutorial", context=str(root)))
    try:
        assert ended(run(image, volumes=volumes(mount))) == 0
        assert (mount / "Models.01-0.50.hdf5").read_text() == "weights"
    finally:
        engine.images.remove(image, force=True)
