"""Built and pushed with a real engine and real registries; what docker-py keeps silent about becomes an error."""

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cloudtrain.image import Build, Ensured, ImageError, look, pull_login
from cloudtrain.image.engine import Cancelled
from tests.docker_parts import Registry, free_port

from .making import Silent, dockerfile, ensured, login, planned

pytestmark = pytest.mark.docker
DONE, PUSHED, NOTHING = Ensured(True, True), Ensured(False, True), Ensured(False, False)


@pytest.fixture(autouse=True)
def own_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """docker's configuration of this test, empty: nobody is logged in."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder


@pytest.fixture
def tidy(engine: Any) -> Iterator[list[Build]]:
    """Builds whose images are removed from the engine afterwards."""
    builds: list[Build] = []
    yield builds
    forget(engine, *builds)


def forget(engine: Any, *builds: Build) -> None:
    from docker.errors import ImageNotFound

    for build in builds:
        try:
            engine.images.remove(build.image, force=True)
        except ImageNotFound:
            continue


def small(directory: Path, address: str, content: str = "hello") -> Build:
    """An image of one file; its content makes it another one."""
    dockerfile(directory, "FROM scratch", "COPY hello /hello")
    (directory / "hello").write_text(content)
    return planned(directory, repository=f"{address}/team/small", context=str(directory))


def refused(build: Build) -> ImageError:
    with pytest.raises(ImageError) as found:
        ensured(build)
    assert found.value.exit_code == 7 and found.value.hint
    return found.value


def test_an_unchanged_image_is_neither_built_nor_pushed(
    tmp_path: Path, engine: Any, registry: Registry, tidy: list[Build]
) -> None:
    build = small(tmp_path / "a", registry.address)
    tidy.append(build)
    progress = Silent()
    assert ensured(build, progress) == DONE
    assert progress.steps == [
        "looking for the trainer image",
        "building the trainer image",
        "pushing the trainer image",
    ]
    assert any(update.startswith("Step 2/2") for update in progress.updates)
    assert any(update.startswith("pushed 1 of 1 layers") for update in progress.updates)
    assert ensured(small(tmp_path / "a", registry.address)) == NOTHING
    forget(engine, build)  # the registry is enough
    assert ensured(small(tmp_path / "b", registry.address)) == NOTHING
    changed = small(tmp_path / "a", registry.address, "changed")
    tidy.append(changed)
    assert changed.image != build.image and ensured(changed) == DONE


def test_an_image_that_was_built_and_not_pushed_is_only_pushed(
    tmp_path: Path, engine: Any, registry: Registry, tidy: list[Build]
) -> None:
    away = small(tmp_path / "a", f"127.0.0.1:{free_port()}", "built before")
    assert refused(away).code == "RegistryUnreachable"  # asked first: nothing was built in vain
    build = small(tmp_path / "a", registry.address, "built before")
    tidy.append(build)
    repository, _, tag = build.image.rpartition(":")
    engine.images.build(path=str(tmp_path / "a"), tag=f"{repository}:{tag}")
    assert ensured(build) == PUSHED


BROKEN = {
    "a command that fails": (["FROM {base}", "RUN echo why; exit 3"], "BuildFailed", ["code: 3", "why", "Put "]),
    "a file that is missing": (["FROM scratch", "COPY nothing /"], "BuildFailed", ["nothing", "Put "]),
    "no Dockerfile at all": (["FROMM x"], "BuildFailed", ["unknown instruction", "Put "]),
    "nothing in it": ([""], "BuildFailed", ["no instructions", "Put "]),
    "a base image that is not there": (["FROM {registry}/no/such:1"], "BaseImageMissing", ["no/such:1", "after FROM"]),
    "a base image nowhere": (["FROM 127.0.0.1:1/no/such:1"], "BaseImageMissing", ["refused", "after FROM"]),
    "only for BuildKit": (["FROM {base}", "RUN --mount=type=cache,target=/x ls"], "BuildFailed", ["--image"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_dockerfile_is_told_with_what_to_do(
    case: str, tmp_path: Path, registry: Registry, base_image: str
) -> None:
    lines, code, words = BROKEN[case]
    root = dockerfile(tmp_path / "a", *(line.format(base=base_image, registry=registry.address) for line in lines))
    error = refused(planned(root, repository=f"{registry.address}/team/broken", context=str(root)))
    assert error.code == code, error.message
    assert all(word in error.message + error.hint for word in words), error.message + error.hint


def test_a_registry_with_a_password_wants_the_login_before_anything_is_built(
    tmp_path: Path, locked_registry: Registry, own_login: Path, tidy: list[Build]
) -> None:
    address = locked_registry.address
    build = small(tmp_path / "a", address)
    tidy.append(build)
    for password in (None, "wrong"):
        if password:
            login(own_login, address, locked_registry.user, password)
        error = refused(build)
        assert error.code == "RegistryLoginNeeded" and f"docker login {address}" in error.hint
    login(own_login, address, locked_registry.user, locked_registry.password)
    assert ensured(build) == DONE and ensured(build) == NOTHING


def test_the_login_may_come_from_a_credential_helper(
    tmp_path: Path, locked_registry: Registry, own_login: Path, tidy: list[Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, tools = locked_registry.address, tmp_path / "tools"
    tools.mkdir()
    said = json.dumps({"Username": locked_registry.user, "Secret": locked_registry.password})
    helper = tools / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\necho '{said}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (own_login / "config.json").write_text(json.dumps({"credHelpers": {address: "test"}}))
    build = small(tmp_path / "a", address, "helped")
    tidy.append(build)
    assert ensured(build) == DONE
    helper.write_text("#!/bin/sh\necho the keyring is locked\nexit 1\n")
    with pytest.raises(ImageError) as refused:
        pull_login(build.image)
    assert refused.value.code == "DockerCredentials" and "docker login" in refused.value.hint


def test_a_private_image_is_pulled_with_the_login_and_a_public_one_without(
    tmp_path: Path, locked_registry: Registry, registry: Registry, own_login: Path, tidy: list[Build]
) -> None:
    build = small(tmp_path / "a", locked_registry.address, "private")
    public = small(tmp_path / "b", registry.address, "public")
    tidy += [build, public]
    entries = {}
    for where in (locked_registry, registry):
        login(own_login, where.address, where.user or "somebody", where.password or "secret")
        entries |= json.loads((own_login / "config.json").read_text())["auths"]
    (own_login / "config.json").write_text(json.dumps({"auths": entries}))
    ensured(build)
    ensured(public)
    assert pull_login(public.image) is None
    sent = json.loads(pull_login(build.image) or "")
    auth = base64.b64encode(f"{locked_registry.user}:{locked_registry.password}".encode()).decode()
    assert sent == {"auths": {locked_registry.address: {"auth": auth}}}  # of this registry alone
    (own_login / "config.json").unlink()
    assert pull_login(build.image) is None
    with pytest.raises(ImageError) as refused:
        look(build.image, built=False)
    assert refused.value.code == "RegistryLoginNeeded"


def test_what_the_vm_gets_lets_the_docker_client_pull(
    tmp_path: Path, engine: Any, locked_registry: Registry, own_login: Path, tidy: list[Build]
) -> None:
    """The guest hands it over as the guest does, with DOCKER_CONFIG."""
    client = shutil.which("docker")
    if client is None:
        pytest.skip("there is no docker command here")
    login(own_login, locked_registry.address, locked_registry.user, locked_registry.password)
    build = small(tmp_path / "a", locked_registry.address, "pulled by the client")
    tidy.append(build)
    ensured(build)
    forget(engine, build)
    on_vm = tmp_path / "vm"
    on_vm.mkdir()
    for content, code in (("{}", 1), (pull_login(build.image), 0)):
        (on_vm / "config.json").write_text(content or "")
        environment = {**os.environ, "DOCKER_CONFIG": str(on_vm)}
        pulled = subprocess.run([client, "pull", build.image], env=environment, capture_output=True, text=True)
        assert pulled.returncode == code, pulled.stderr


def test_an_image_that_nobody_published_is_told_before_a_vm_is_made(registry: Registry) -> None:
    with pytest.raises(ImageError) as refused:
        look(f"{registry.address}/team/never:1", built=False)
    assert refused.value.code == "NoSuchImage" and "team/never" in refused.value.message
    away = f"127.0.0.1:{free_port()}/team/x:1"
    assert look(away, built=False) is None  # cannot be asked from here: the VM may be able to
    with pytest.raises(ImageError):
        look(away, built=True)


@pytest.fixture
def denying_registry() -> Iterator[str]:
    """A registry that gives everybody a token, and no token the right to push: Docker Hub and another user's
    repository."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = (
                401,
                {"errors": [{"code": "DENIED", "message": "requested access to the resource is denied"}]},
            )
            if self.path.startswith("/token"):
                status, body = 200, {"token": "anybody"}
            elif self.command == "HEAD":  # it has no such layer, and no such image
                status = 404
            elif self.path == "/v2/" and self.headers.get("Authorization"):
                status, body = 200, {}
            content = json.dumps(body).encode()
            self.send_response(status)
            if status == 401:
                scope = ',error="insufficient_scope"' if self.command == "POST" else ""
                realm = f"http://127.0.0.1:{self.server.server_address[1]}/token"
                self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="tests"{scope}')
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_push_that_is_denied_says_who_may(
    tmp_path: Path, engine: Any, denying_registry: str, tidy: list[Build]
) -> None:
    build = small(tmp_path / "a", denying_registry)
    tidy.append(build)
    error = refused(build)
    assert error.code == "RegistryDenied" and "denied" in error.message
    assert "rights" in error.hint and f"docker login {denying_registry}" in error.hint


def test_a_build_that_nobody_needs_any_more_is_given_up(
    tmp_path: Path, engine: Any, registry: Registry, base_image: str
) -> None:
    root = dockerfile(tmp_path / "a", f"FROM {base_image}", "RUN for i in $(seq 60); do echo $i; sleep 1; done")
    build = planned(root, repository=f"{registry.address}/team/slow", context=str(root))
    failed = threading.Event()

    class Impatient(Silent):
        def update(self, text: str) -> None:
            if text == "2":
                failed.set()

    with pytest.raises(Cancelled):
        build.ensure(Impatient(), failed)
    assert not [found for found in engine.images.list() if build.image in found.tags]


def test_an_engine_that_does_not_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    error = refused(small(tmp_path / "a", "127.0.0.1:1"))
    assert error.code == "DockerNotRunning" and "DOCKER_HOST" in error.hint and "--image" in error.hint
