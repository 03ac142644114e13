"""What is built and under which tag: decided by the files alone, without an engine."""

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cloudtrain.config import settings_for_up
from cloudtrain.errors import CloudtrainError
from cloudtrain.image import plan
from cloudtrain.image.layers import Layers
from cloudtrain.image.reference import parse

from .making import dockerfile, planned


def project(directory: Path) -> Path:
    dockerfile(directory, "FROM scratch", "COPY . /")
    (directory / "main.py").write_text("print(1)\n")
    (directory / "notes.md").write_text("not needed\n")
    (directory / ".dockerignore").write_text("# comment\n*.md\n")
    return directory


def tag(directory: Path, **settings: Any) -> str:
    return planned(directory, **{"repository": "me/trainer", "context": str(directory), **settings}).image


def test_the_tag_follows_what_is_built_and_nothing_else(tmp_path: Path) -> None:
    here = project(tmp_path / "here")
    first = tag(here)
    assert first.startswith("me/trainer:") and tag(here) == first
    os.utime(here / "main.py", (1, 1))
    (here / "notes.md").write_text("changed, and left out\n")
    assert tag(here) == first == tag(project(tmp_path / "elsewhere"))
    tags = {first, tag(here, build_args={"A": "1"}), tag(here, build_args={"A": "2"})}
    (here / "main.py").chmod(0o755)
    tags.add(tag(here))
    (here / "main.py").write_text("print(2)\n")
    tags.add(tag(here))
    (here / "Dockerfile").write_text("FROM scratch\n")
    tags.add(tag(here))
    (here / "added").symlink_to("main.py")
    tags.add(tag(here))
    assert len(tags) == 7


def test_a_dockerfile_may_lie_outside_of_its_context(tmp_path: Path) -> None:
    here = project(tmp_path / "here")
    other = tmp_path / "Dockerfile.gpu"
    other.write_text("FROM scratch\nCOPY main.py /\n")
    assert tag(here, dockerfile=str(other)) != tag(here)


def test_a_hard_link_is_a_file_of_its_own(tmp_path: Path) -> None:
    here = project(tmp_path / "here")
    (here / "second.py").write_text("print(1)\n")
    copied = tag(here)
    (here / "second.py").unlink()
    os.link(here / "main.py", here / "second.py")
    assert tag(here) == copied


def test_the_trainer_that_comes_along_is_the_default_and_its_variant_counts(tmp_path: Path) -> None:
    cpu = planned(tmp_path, repository="me/trainer")
    gpu = planned(tmp_path, repository="me/trainer", variant="gpu")
    assert not cpu.own and cpu.image != gpu.image
    assert cpu.build_args["TENSORFLOW"] == "tensorflow-cpu" and "and-cuda" in gpu.build_args["TENSORFLOW"]
    with tarfile.open(fileobj=cpu.context.archive) as tar:
        names = tar.getnames()
    assert "trainer/__main__.py" in names and "trainer/requirements.txt" in names
    assert all(name.split("/")[0] in ("trainer", ".cloudtrain.dockerfile") for name in names)
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"repository": "me/trainer", "context": "nowhere"}, ["nowhere/Dockerfile", "--context"]),
        ({"repository": "me/trainer", "dockerfile": "Nope"}, ["Nope", "--dockerfile"]),
        ({"dockerfile": "Dockerfile"}, ["dockerfile", "--repository"]),
        ({"image": "me/x:1", "variant": "gpu"}, ["me/x:1", "variant"]),
        ({"image": "me/x:1", "repository": "me/x"}, ["me/x:1", "Say one of the two"]),
        ({"repository": "me/x", "dockerfile": "D", "variant": "gpu"}, ["variant", "--build-arg"]),
        ({"repository": "me/x:1"}, ["repository", "without a tag"]),
        ({"repository": "Me/X"}, ["repository", "me/x"]),
        ({"variant": "tpu"}, ["variant", '"cpu" or "gpu"']),
        ({"build_args": {"A": 1}}, ["build_args", "names and texts"]),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(CloudtrainError) as refused:
        wanted = settings_for_up({"run": "horses", **settings}, {}, tmp_path)
        plan(wanted, repository=wanted.repository, gpu=False)
    assert refused.value.exit_code == 2
    assert all(word in refused.value.message + refused.value.hint for word in words)


def test_a_flag_wins_over_whatever_of_the_file_contradicts_it(tmp_path: Path) -> None:
    table: dict[str, object] = {"run": "horses", "repository": "me/trainer", "variant": "gpu"}
    assert settings_for_up(table, {"image": "me/x:1"}, tmp_path).repository is None
    found = settings_for_up({"run": "horses", "image": "me/x:1"}, {"repository": "me/trainer"}, tmp_path)
    assert (found.image, found.repository) == (None, "me/trainer")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ubuntu", ("docker.io", "ubuntu", "latest")),
        ("me/trainer:1.0", ("docker.io", "me/trainer", "1.0")),
        ("localhost/x", ("localhost", "localhost/x", "latest")),
        ("127.0.0.1:5000/a/b", ("127.0.0.1:5000", "127.0.0.1:5000/a/b", "latest")),
        ("r.example.com/a@sha256:" + "0" * 64, ("r.example.com", "r.example.com/a", "sha256:" + "0" * 64)),
    ],
)
def test_references_are_taken_apart_as_docker_does(text: str, parts: tuple[str, str, str]) -> None:
    found = parse(text)
    assert (found.registry, found.repository, found.version) == parts


def test_layers_add_up_and_never_exceed_their_total() -> None:
    """Recorded from a push: Docker said 512 of 247 bytes."""
    layers = Layers("pushed")
    layers.told({"status": "Preparing", "progressDetail": {}, "id": "a"})
    layers.told({"status": "Preparing", "progressDetail": {}, "id": "b"})
    half = layers.told({"status": "Pushing", "progressDetail": {"current": 5_000_000, "total": 10_000_000}, "id": "a"})
    assert half == "pushed 0 of 2 layers, 5 of 10 MB"
    beyond = layers.told(
        {"status": "Pushing", "progressDetail": {"current": 20_000_000, "total": 10_000_000}, "id": "a"}
    )
    assert beyond == "pushed 0 of 2 layers, 10 of 10 MB"
    assert layers.told({"status": "Pushed", "progressDetail": {}, "id": "a"}).startswith("pushed 1 of 2 layers")
    last = layers.told({"status": "Pushing", "progressDetail": {"current": 512}, "id": "b"})
    assert last == "pushed 1 of 2 layers, 10 of 10 MB"
    assert layers.told({"progressDetail": {}, "aux": {"Tag": "1"}}) == ""
