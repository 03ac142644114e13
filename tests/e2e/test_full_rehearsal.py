"""The journey on nodes: the built image, real crontab, real docker run, real ssh; and nothing of it left."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudtrain.emulator.machines.engine import LABEL, Engine
from tests.docker_parts import base_image, engine, node_base  # noqa: F401  # fixtures

from .conftest import CommandLine
from .test_journey import events, until_finished

pytestmark = [pytest.mark.docker, pytest.mark.skipif(os.getuid() != 0, reason="a node needs capabilities of root")]

# Small enough for a test, long enough to be evicted six times.
JOB = ("--dataset", "silhouettes", "--image-size", "64", "--batch-size", "16", "--epochs", "9", "--seed", "7")


OWN = 'ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY small_trainer.py /\nENTRYPOINT ["python3", "/small_trainer.py"]\n'
OWN_JOB = ("--dockerfile", "own/Dockerfile")  # up, with a trainer that costs no time


@pytest.fixture(scope="module")
def cloudtrain(
    engine: Any,  # noqa: F811
    node_base: str,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[CommandLine]:
    """One home for all, so that image and node image are built once; at the end the engine is as it was."""
    place = tmp_path_factory.mktemp("full")
    (place / "project").mkdir()
    (place / "project" / "cloudtrain.toml").write_text(
        f'machine = "container"\nbuild_args = {{ BASE_IMAGE = "{node_base}" }}\n'
    )
    own = place / "project" / "own"
    own.mkdir()
    (own / "Dockerfile").write_text(OWN)
    shutil.copy(Path(__file__).with_name("small_trainer.py"), own)
    line = CommandLine(home=place / "home", directory=place / "project")
    owner = Engine(line.home / "emulator").owner
    before = holdings(engine, owner)
    assert line("emulator", "node", "--base", node_base).code == 0
    yield line
    line("emulator", "reset", "--yes")
    left = {kind: held - before[kind] for kind, held in holdings(engine, owner).items()}
    assert left == {kind: set() for kind in before}
    assert line.processes() == []


def holdings(client: Any, owner: str) -> dict[str, set[str]]:
    """What an engine holds that may be a rehearsal's. What a build leaves without a name is an image, too."""
    ours = {"label": f"{LABEL}={owner}"}
    named = ("cloudtrain-node", "127.0.0.1:")
    images = [one for one in client.images.list() if not one.tags or any(tag.startswith(named) for tag in one.tags)]
    return {
        "containers": {one.id for one in client.containers.list(all=True, filters=ours)},
        "volumes": {one.id for one in client.volumes.list(filters=ours)},
        "networks": {one.id for one in client.networks.list()},
        "images": {one.id for one in images},
    }


@pytest.mark.parametrize("own", [True, False], ids=["an image of one's own", "the trainer that comes along"])
def test_six_evictions_of_a_node_leave_the_same_weights(
    cloudtrain: CommandLine,
    engine: Any,  # noqa: F811
    own: bool,
) -> None:
    job = (*OWN_JOB, "--json") if own else ("--json", "--", *JOB)
    first = cloudtrain("up", "alone", *job, timeout=600).data
    assert first["image_built"] and first["image_pushed"]
    up = cloudtrain("up", "horses", *job).data
    assert up["seen"] == "progress" and not up["image_built"] and not up["image_pushed"]
    nodes = [one for one in engine.containers.list() if one.labels.get("cloudtrain.vm")]
    for _ in range(3):
        warned = cloudtrain("simulate-eviction", "horses", "--notice", "20", "--json").data
        assert warned["steps_lost"] == 0 and warned["saved_step"] == warned["resumed_step"], warned
        assert "process gone" in " ".join(events(warned))
    for _ in range(3):
        cut = cloudtrain("simulate-eviction", "horses", "--notice", "0", "--json").data
        assert isinstance(cut["steps_lost"], int) and cut["steps_lost"] >= 0, cut
    training = until_finished(cloudtrain, "horses")["training"]
    assert training["resumes"] == 6 and training["digest"]
    assert training["digest"] == until_finished(cloudtrain, "alone")["training"]["digest"]
    assert cloudtrain("down", "horses", "--json").data["left"] == []
    assert cloudtrain("status", "alone", "--json").data["state"] == "finished"
    assert cloudtrain("down", "alone", "--json").data["left"] == []
    ours = {"label": f"cloudtrain.emulator={nodes[0].labels['cloudtrain.emulator']}"}
    assert engine.containers.list(all=True, filters=ours) == [] and engine.volumes.list(filters=ours) == []
    assert not [tag for image in engine.images.list() for tag in image.tags if up["image"] in tag]


@pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh (Debian: openssh-client)")
def test_ssh_gets_in_only_where_the_security_group_says_so(cloudtrain: CommandLine) -> None:
    up = cloudtrain("up", "shell", *OWN_JOB, "--json", "--", "--steps", "100000", timeout=600)
    assert up.data["state"] == "running"
    refused = cloudtrain("ssh", "shell", "--", "true")
    assert refused.code == 4 and "lets nobody in at port 22" in refused.err
    opened = cloudtrain("up", "shell", *OWN_JOB, "--ssh", "--json")
    assert opened.data["notes"] and not opened.data["created"]
    said = cloudtrain("ssh", "shell", "--", "whoami; sudo docker container ls --format '{{.Names}}'; exit 7")
    assert (said.code, said.out) == (7, "azureuser\ncloudtrain-trainer\n"), said
    assert cloudtrain("ssh", "shell", "--", "printf", "%s|", "a b", "$HOME").out == "a b|$HOME|"
    login = cloudtrain("ssh", "shell", "--json").data
    known_hosts = Path(login["known_hosts"])
    assert known_hosts.read_text().startswith("shell-g1 ssh-ed25519 ")
    # another key of the host than the one of the first contact is refused
    pinned = known_hosts.read_text()
    known_hosts.write_text(f"shell-g1 {' '.join(own_key(cloudtrain).split()[:2])}\n")
    assert cloudtrain("ssh", "shell", "--", "true").code == 8
    known_hosts.write_text(pinned)
    assert (
        cloudtrain("simulate-eviction", "shell", "--notice", "0", "--no-restart", "--json").data["state"] == "evicted"
    )
    off = cloudtrain("ssh", "shell", "--", "true")
    assert off.code == 4 and "cloudtrain restart shell" in off.err
    assert cloudtrain("restart", "shell", "--json").data["action"] == "started"
    assert cloudtrain("ssh", "shell", "--", "hostname").out == "shell-g1\n"  # same host key, wherever it runs now
    closed = cloudtrain("up", "shell", *OWN_JOB, "--ssh", "198.51.100.7", "--json").data
    assert any("198.51.100.7/32" in note for note in closed["notes"])
    assert cloudtrain("ssh", "shell", "--", "true").code == 8  # the node drops what the group does not let in
    assert cloudtrain("down", "shell", "--json").data["left"] == []
    assert not known_hosts.exists()


def own_key(cloudtrain: CommandLine) -> str:
    return (cloudtrain.home / "runs/embedded/shell/id_rsa.pub").read_text()


def test_another_kind_of_machine_is_refused_while_vms_are_there(cloudtrain: CommandLine) -> None:
    up = cloudtrain("up", "first", *OWN_JOB, "--json", timeout=600)
    assert up.data["state"] == "running"
    other = cloudtrain("up", "second", *OWN_JOB, "--machine", "process", "--json")
    assert (other.code, json.loads(other.out)["errors"][0]["code"]) == (2, "OtherMachines")
    assert cloudtrain("emulator", "status", "--json").data["kind"] == "container"
    assert cloudtrain("emulator", "reset", "--yes", "--json").data["kind"] == "process"
    assert cloudtrain("list", "--json").data["runs"] == []
