"""Machines of kind `container`, through their public face, on a real Docker engine: the same scenarios as processes."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import cloudtrain
from cloudtrain.clock import SystemClock
from cloudtrain.emulator.machines.container import ContainerMachines, container_machines
from tests.docker_parts import base_image, engine, node_base  # noqa: F401  # fixtures

from .test_process_machine import scenarios
from .test_resource_manager_from_a_vm import World as ResourceManagerWorld

pytestmark = [pytest.mark.docker, pytest.mark.skipif(os.getuid() != 0, reason="looks at a volume from the host")]

VM, SPEC = scenarios.VM, scenarios.SPEC
NODE = f"cloudtrain-{VM}"
# Images of the scenarios in the engine of a VM, from the registry that the rehearsal starts.
ENGINE = "until docker info >/dev/null 2>&1; do sleep 0.1; done\n"
FETCH = (
    ENGINE
    + """
docker image inspect {name} >/dev/null 2>&1 && exit
docker pull -q {source} >/dev/null && docker tag {source} {name}
"""
)


class Fetching(ContainerMachines):
    """A VM that has the images of the scenario once it is up."""

    images: Mapping[str, str] = {}

    def boot(self, spec: Any, *, same_host: bool = False) -> None:
        super().boot(spec, same_host=same_host)
        for name, source in self.images.items():
            scenarios.output(self, FETCH.format(name=name, source=source))

    def reboot(self, vm_id: str) -> None:
        super().reboot(vm_id)
        if self.images:  # the engine comes up after cron, here as everywhere
            scenarios.output(self, ENGINE)


@dataclass
class ContainerWorld(scenarios.World):  # type: ignore[misc, name-defined]
    """Where a scenario takes place: an emulator's directory, and the engine."""

    base: str = ""
    client: Any = None
    source: str = ""  # where the nodes get the trainer's image, which stands for every image of a scenario
    python = "/usr/bin/python3"

    def machines(self) -> Any:
        made = container_machines(self.root, clock=SystemClock(), node_base=self.base)
        made.__class__ = Fetching
        made.images = dict.fromkeys(("cloudtrain-trainer", *self.images), self.source) if self.source else {}
        return made

    def imds_url(self, machines: Any) -> str:
        return "http://169.254.169.254"

    def ask_imds(
        self, machines: Any, path: str, body: Any = None, headers: Any = None, url: str = ""
    ) -> tuple[int, Any]:
        """From inside: nowhere else is that address the VM's."""
        words = ["curl", "-sS", "-w", "\n%{http_code}", self.imds_url(machines) + path]
        for name, value in ({"Metadata": "true"} if headers is None else headers).items():
            words += ["-H", f"{name}: {value}"]
        if body is not None:
            words += ["-d", json.dumps(body)]
        said = self.client.containers.get(NODE).exec_run(words).output.decode()
        content, _, status = said.rpartition("\n")
        return int(status), (json.loads(content) if content and status == "200" else content or None)

    def lose_host(self) -> None:
        self.client.containers.get(NODE).kill()

    def starter(self) -> "subprocess.Popen[bytes]":
        code = (
            "import sys; sys.path[:0] = sys.argv[1:3]; from pathlib import Path\n"
            "from cloudtrain.clock import SystemClock\n"
            "from cloudtrain.emulator.machines.container import container_machines\n"
            "import machine_scenarios as s\n"
            "m = container_machines(Path(sys.argv[3]), clock=SystemClock(), node_base=sys.argv[4])\n"
            "print(flush=True); m.boot(s.SPEC)"
        )
        places = [str(Path(__file__).parent), str(Path(cloudtrain.__file__).parents[1]), str(self.root)]
        return subprocess.Popen([sys.executable, "-c", code, *places, self.base], stdout=subprocess.PIPE)

    def left(self) -> list[Any]:
        return self.client.containers.list(filters={"name": NODE})

    def strays(self) -> list[str]:
        return [VM]

    def traces(self) -> list[Any]:
        """Of the VM; what all VMs share goes by a sweep."""
        machines = self.machines()
        return [
            *self.client.containers.list(all=True, filters={"name": NODE}),
            *self.client.volumes.list(filters={"name": NODE}),
            *self.root.glob(f"nodes/*{VM}*"),
            *machines.strays(),
        ]


@pytest.fixture(scope="module")
def shared(engine: Any, node_base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerWorld]:  # noqa: F811
    """The node image and the registry, with the image of a trainer; swept away at the end."""
    world = ContainerWorld(tmp_path_factory.mktemp("container") / "emulator", base=node_base, client=engine)
    world.root.mkdir()
    machines = world.machines()
    machines.prepare(lambda text: None)
    source = machines.repository("trainer")
    dockerfile = f'FROM {node_base}\nCOPY trainer.py /\nWORKDIR /app\nENTRYPOINT ["python3", "-u", "/trainer.py"]\n'
    engine.images.build(fileobj=_context(dockerfile, scenarios.TRAINER), custom_context=True, tag=source, rm=True)
    engine.images.push(source)
    yield replace(world, source=source)
    machines.erase(VM)
    assert machines.sweep() == []
    assert servers(world) == []
    assert not [image for image in engine.images.list() if any(source in tag for tag in image.tags)]


def _context(dockerfile: str, program: str) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in (("Dockerfile", dockerfile), ("trainer.py", program)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    buffer.seek(0)
    return buffer


@pytest.fixture
def world(shared: ContainerWorld, request: pytest.FixtureRequest) -> Iterator[ContainerWorld]:
    with_images = any(word in request.node.name for word in ("docker_", "tutorial", "erase"))
    yield shared if with_images else replace(shared, source="")
    shared.machines().erase(VM)


SCENARIOS = {
    **scenarios.CORE,
    **{
        name: scenarios.MORE[name]
        for name in (
            "what_is_on_the_disk_survives",
            "an_eviction_gives_notice_and_then_cuts",
            "the_instance_document_describes_the_vm",
            "a_starter_killed_at_any_moment_leaves_the_truth",
        )
    },
    "the_tutorials_scripts_work_byte_for_byte": scenarios.the_tutorials_scripts_work_byte_for_byte,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_node_is_a_vm(name: str, world: ContainerWorld) -> None:
    SCENARIOS[name](world)


def test_a_node_whose_process_1_hangs_is_cut_all_the_same(world: ContainerWorld) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    os.kill(int(world.client.containers.get(NODE).attrs["State"]["Pid"]), 19)  # SIGSTOP
    begun = time.monotonic()
    machines.power_off(VM)
    assert time.monotonic() - begun < 10
    assert not machines.power(VM).on and world.left() == []


def test_somebody_who_removes_the_container_loses_no_disk(world: ContainerWorld) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    scenarios.output(machines, "echo kept > /root/file; echo mine > /usr/local/bin/mine")
    world.client.containers.get(NODE).remove(force=True, v=True)
    assert not machines.power(VM).on
    machines.boot(SPEC)
    assert machines.power(VM).boot == 2
    assert scenarios.output(machines, "cat /root/file /usr/local/bin/mine") == "kept\nmine\n"


def test_the_disk_is_a_volume_and_the_engine_inside_is_the_vms_own(world: ContainerWorld) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    mounts = world.client.containers.get(NODE).attrs["Mounts"]
    assert [mount["Name"] for mount in mounts if mount["Type"] == "volume"] == [NODE]
    scenarios.output(machines, "until docker info >/dev/null 2>&1; do sleep 0.1; done")
    assert scenarios.output(machines, "docker info -f '{{.Driver}} {{.Name}}'") == "overlay2 run-g1\n"
    assert scenarios.output(machines, "docker ps -aq") == ""
    tools = scenarios.output(machines, "for p in bash cron curl docker flock python3 sshd sudo; do command -v $p; done")
    assert len(tools.split()) == 8


# What a node reaches of the embedded Azure, as cron, the agent and a login start it.
REACH = """#!/usr/bin/python3
import os, urllib.error, urllib.request
for url in (os.environ["CLOUDTRAIN_BLOBS"] + "/nobody/run/b", os.environ["CLOUDTRAIN_ARM"] + "/subscriptions"):
    try:
        urllib.request.urlopen(url)
    except urllib.error.HTTPError as error:
        print(error.status, end=" ")
"""


LOG_IN = """
ssh-keygen -q -t ed25519 -N '' -f /root/key && cat /root/key.pub >> /home/azureuser/.ssh/authorized_keys
ssh -i /root/key -o StrictHostKeyChecking=no -o LogLevel=ERROR azureuser@127.0.0.1 """


def servers(world: ContainerWorld) -> list[int]:
    command = [b"cloudtrain.emulator.blobs.server", str(world.root).encode(), b"--nodes"]
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().split(b"\0")[2:5] == command:
                found.append(int(path.parent.name))
    return found


def test_a_node_reaches_blobs_and_resource_manager(world: ContainerWorld) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    assert scenarios.output(machines, REACH) == "404 401 "
    scenarios.output(machines, f"cat > /reach <<'END'\n{REACH}END\nchmod +x /reach")
    by_cron = "echo '@reboot /reach > /said 2>&1; touch /done' | crontab -"
    scenarios.output(machines, by_cron)
    machines.reboot(VM)
    assert scenarios.output(machines, "until [ -e /done ]; do sleep 0.05; done; cat /said") == "404 401 "
    assert scenarios.output(machines, LOG_IN + "/reach") == "404 401 "


def test_a_node_with_the_role_deallocates_itself(world: ContainerWorld) -> None:
    own = ResourceManagerWorld(world.root, world.machines(), "/usr/bin/python3")
    try:
        own.assign(own.vm.id)
        assert own.ask_granted("POST", f"{own.vm.id}/deallocate", STAY="600") == "202 True"
        deadline = time.monotonic() + 15
        while own.machines.power(own.vm.vm_id).on:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        own.cloud.await_power("deallocated")
    finally:
        own.machines.erase(own.vm.vm_id)
        own.cloud.azure.close()


def test_the_nodes_server_comes_back_with_the_next_command_and_goes_with_the_last_node(world: ContainerWorld) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    [server] = servers(world)
    os.kill(server, signal.SIGKILL)
    while servers(world):
        time.sleep(0.02)
    assert world.machines().power(VM).on
    assert scenarios.output(machines, REACH) == "404 401 "
    [again] = servers(world)
    assert again != server
    world.machines().boot(SPEC)
    assert servers(world) == [again]
