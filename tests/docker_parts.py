"""What tests marked `docker` work with: an engine, registries of their own on loopback, a base image that nobody pulls.

Fixtures for `pytest_plugins` or an import. Each skips its test, with the reason, where its part is missing; `.ci/run`
brings all of them.
"""

import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloudtrain.config import settings_for_up
from cloudtrain.display import Silent
from cloudtrain.image import Build, plan
from cloudtrain.image.engine import build, is_here

# Made by .ci/engine: Debian with Python and pip.
BASE_IMAGE = os.environ.get("CLOUDTRAIN_TEST_BASE_IMAGE", "cloudtrain-test/base:bookworm")
USER, PASSWORD = "ada", "pull-and-push-8761"


@dataclass(frozen=True)
class Registry:
    """address: host:port. user, password: empty where anybody may push."""

    address: str
    user: str = ""
    password: str = ""


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the Docker engine."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=600)
    except DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def base_image(engine: Any) -> str:
    """An image with Python and pip."""
    from docker.errors import ImageNotFound

    try:
        engine.images.get(BASE_IMAGE)
    except ImageNotFound:
        pytest.skip(f"the engine has no image {BASE_IMAGE}; .ci/engine makes it")
    return BASE_IMAGE


@pytest.fixture(scope="session")
def node_base(engine: Any, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What nodes are built on. A node image stays under another name, so that others are built from the cache."""
    from docker.errors import ImageNotFound

    from cloudtrain.clock import SystemClock
    from cloudtrain.emulator.machines.container import container_machines

    machines = container_machines(
        tmp_path_factory.mktemp("node") / "emulator", clock=SystemClock(), node_base=base_image
    )
    kept = f"cloudtrain-test/node:{os.getpid()}"
    engine.images.get(machines.build(lambda text: None)).tag(kept)
    yield base_image
    # The last rehearsal that ended has removed the image under all its names.
    with suppress(ImageNotFound):
        engine.images.remove(kept)


@pytest.fixture(scope="session")
def trainer_image(engine: Any, base_image: str) -> str:
    """The trainer's own image, built from its Dockerfile as `up` would. It stays in the engine: an unchanged one is not
    built again."""
    said = {"run": "tests", "repository": "cloudtrain-test/trainer", "build_args": {"BASE_IMAGE": base_image}}
    wanted = settings_for_up(said, {}, Path.cwd())
    planned = plan(wanted, repository=wanted.repository, gpu=False)
    assert planned is not None
    return planned.image if is_here(engine, planned.image) else built(engine, planned)


def built(engine: Any, planned: Build) -> str:
    """Only built, not pushed."""
    build(
        engine,
        planned.image,
        planned.context,
        planned.build_args,
        dockerfile=planned.dockerfile,
        step=Silent().step("building"),
        cancelled=threading.Event(),
    )
    return planned.image


@pytest.fixture(scope="session")
def registry(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Where anybody may push."""
    with running_registry(tmp_path_factory.mktemp("registry")) as address:
        yield Registry(address)


@pytest.fixture(scope="session")
def locked_registry(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One with a password."""
    folder = tmp_path_factory.mktemp("locked-registry")
    program = shutil.which("htpasswd")
    if program is None:
        pytest.skip("there is no htpasswd (Debian: apache2-utils)")
    passwords = folder / "htpasswd"
    # -B: docker-registry reads bcrypt alone; -i: from standard input, not from a command line
    subprocess.run([program, "-Bic", str(passwords), USER], input=PASSWORD, text=True, check=True, capture_output=True)
    with running_registry(folder, f"auth: {{htpasswd: {{realm: tests, path: {passwords}}}}}\n") as address:
        yield Registry(address, USER, PASSWORD)


@contextmanager
def running_registry(folder: Path, more: str = "") -> Iterator[str]:
    """Debian's docker-registry on a free port of loopback, where engines need no TLS."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("there is no docker-registry (Debian: docker-registry)")
    address = f"127.0.0.1:{free_port()}"
    settings = folder / "registry.yml"
    settings.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: {address}}}\n" + more
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", str(settings)], stdout=log, stderr=log)
    try:
        _await(f"http://{address}/v2/", process)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _await(url: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it wants a password: it is there
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{url} never answered")
