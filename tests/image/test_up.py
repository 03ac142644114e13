"""`up` on a cloud whose VMs pull their images: what it sends to the VM, and what a failed build leaves: nothing.

The embedded Azure on VMs made of processes stands for that cloud; its `docker` has one image, the rehearsal's."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudtrain.azure import session as sessions
from cloudtrain.image import Build
from tests.cli.conftest import CommandLine, cloudtrain, quick

from .making import dockerfile, login

__all__ = ["cloudtrain", "quick"]
SECRET = "s3cret-of-the-registry"


@pytest.fixture(autouse=True)
def pulling_cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: Callable[..., Any] = sessions.open_session

    def open_session(*arguments: Any, **options: Any) -> Any:
        session = opened(*arguments, **options)
        session.capabilities = replace(session.capabilities, published_images=True)
        return session

    monkeypatch.setattr(sessions, "open_session", open_session)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


def containing(home: Path, *texts: str) -> list[Path]:
    files = [path for path in home.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if any(text.encode() in path.read_bytes() for text in texts)]


def test_the_login_reaches_the_vm_and_is_nowhere_else(
    quick: Any, cloudtrain: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")  # nobody can tell whether it is private
    login(tmp_path / "docker", "https://index.docker.io/v1/", "ada", SECRET)
    told = quick("up", "horses", "--image", "cloudtrain-trainer", "-vv", "--json", "--", "--epochs", "none")
    assert told.code == 5, told.err  # the trainer refuses its arguments at once
    auth = base64.b64encode(f"ada:{SECRET}".encode()).decode()
    held = containing(cloudtrain.home, SECRET, auth, base64.b64encode(auth.encode()).decode())
    (kept,) = held
    assert str(kept).endswith("/cloudtrain/docker/config.json") and kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text()) == {"auths": {"https://index.docker.io/v1/": {"auth": auth}}}
    assert SECRET not in told.out + told.err and auth not in told.out + told.err
    assert quick("down", "horses").code == 0
    assert containing(cloudtrain.home, SECRET, auth) == []


def test_without_an_engine_nothing_is_made(
    quick: Any, cloudtrain: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    told = quick("up", "horses", "--repository", "ada/trainer", "--json")
    assert (told.code, told.error["code"]) == (7, "DockerNotRunning")
    assert quick("list", "--json").envelope["data"]["runs"] == []
    assert not [path for path in cloudtrain.made() if "horses" in path]


@pytest.mark.docker
def test_a_build_that_fails_beside_the_vm_leaves_nothing(
    quick: Any, cloudtrain: CommandLine, base_image: str, registry: Any
) -> None:
    dockerfile(cloudtrain.directory, f"FROM {base_image}", "RUN sleep 2; echo broken >&2; exit 4")
    repository = f"{registry.address}/team/trainer"
    told = quick("up", "horses", "--repository", repository, "--context", ".", "--json")
    assert (told.code, told.error["code"]) == (7, "BuildFailed") and "broken" in told.error["message"]
    assert "Spot VM" in told.err and "removing what was made" in told.err  # it was made beside the build
    assert quick("list", "--json").envelope["data"]["runs"] == []
    assert quick("emulator", "status", "--json").envelope["data"]["vms"] == []


@pytest.mark.docker
def test_an_up_that_was_interrupted_while_it_built_says_how_to_go_on(
    quick: Any, cloudtrain: CommandLine, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    dockerfile(cloudtrain.directory, "FROM scratch", "COPY Dockerfile /")
    repository = f"{registry.address}/team/interrupted"
    with monkeypatch.context() as once:
        once.setattr(Build, "ensure", interrupted)
        assert quick("up", "horses", "--repository", repository, "--context", ".").code == 130
    told = quick("up", "horses", "--json")
    assert (told.code, told.error["code"]) == (7, "NoSuchImage") and f"--repository {repository}" in told.error["hint"]
    # Without the Dockerfile of before, the trainer that comes along would be built in its place.
    told = quick("up", "horses", "--repository", repository, "--build-arg", "A=1", "--json")
    assert told.code == 2 and "--dockerfile" in told.error["hint"]
    assert quick("down", "horses").code == 0


@pytest.mark.docker
def test_a_vm_that_azure_refuses_ends_the_build(
    quick: Any, cloudtrain: CommandLine, base_image: str, registry: Any
) -> None:
    dockerfile(cloudtrain.directory, f"FROM {base_image}", "RUN for i in $(seq 100); do echo $i; sleep 1; done")
    flags = ("--repository", f"{registry.address}/team/slow", "--context", ".", "--max-price", "0.00001", "--json")
    told = quick("up", "horses", *flags)
    assert told.code == 4, told.out
    assert quick("list", "--json").envelope["data"]["runs"] == []


@pytest.mark.docker
def test_a_broken_build_changes_nothing_of_a_run_that_exists(
    quick: Any, cloudtrain: CommandLine, base_image: str, registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as nobody:
        nobody.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
        assert quick("up", "horses", "--image", "cloudtrain-trainer", "--json", "--", "--epochs", "none").code == 5
    dockerfile(cloudtrain.directory, f"FROM {base_image}", "RUN exit 4")
    told = quick("up", "horses", "--repository", f"{registry.address}/team/x", "--context", ".", "--json")
    assert (told.code, told.error["code"]) == (7, "BuildFailed")
    after = quick("status", "horses", "--json").envelope["data"]
    assert after["image"] == "cloudtrain-trainer" and after["vm"]["power_state"] == "running"
    assert quick("down", "horses").code == 0
