"""What must hold of a machine made of processes, as scenarios that need nothing but the standard library.

`test_process_machine.py` plays them as this user; as root also as an ordinary user, in a Python that one can reach;
and without namespaces.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from cloudtrain.clock import SystemClock
from cloudtrain.emulator.machines import (
    MachineError,
    MachineSpec,
    OffCause,
    Script,
    ScriptResult,
    ScriptState,
    namespaces,
)
from cloudtrain.emulator.machines.process import ProcessMachines

VM = "5f0c8a7e-1111-4222-8333-444455556666"
SPEC = MachineSpec(
    vm_id=VM,
    name="run-g1",
    computer_name="run-g1",
    subscription_id="00000000-0000-0000-0000-000000000001",
    resource_group="cloudtrain-run",
    location="eastus",
    size="Standard_D2s_v3",
    priority="Spot",
    eviction_policy="Deallocate",
    ssh_public_keys=["ssh-rsa AAAA test"],
    user_data="aGVsbG8=",
    tags={"run": "r", "generation": "1"},
)
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"

# Stands in for the trainer's image: says that it began, saves and ends with 75 on SIGTERM.
TRAINER = """
import os, pathlib, signal, sys, time
place = pathlib.Path(os.environ.get("CHECKPOINT_DIR", "Saved_Model"))
def save(*_):
    (place / "saved").write_text("saved")
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("begun", *sys.argv[1:], flush=True)
print("a warning", file=sys.stderr, flush=True)
if "--end" in sys.argv:
    sys.exit(int(sys.argv[sys.argv.index("--end") + 1]))
(place / "begun").write_text(str(time.time()))
while True:
    time.sleep(0.05)
"""

# Double forks, new sessions, ignored signals, cleared environments, and one that is never the same process for long.
HOSTILE = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
def away():
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
for kind in range(6):
    if os.fork() == 0:
        away()
        if kind % 2:
            os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]], {})
        while kind == 0:
            time.sleep(0.001)
            if os.fork():
                os._exit(0)
        time.sleep(600)
"""


@dataclass
class World:
    """Where a scenario takes place."""

    root: Path
    without_namespaces: bool | None = None
    images: Mapping[str, Sequence[str]] = field(default_factory=dict)
    readable: Sequence[Path] = ()

    python = sys.executable  # what a VM of this world has

    def machines(self) -> Any:
        return ProcessMachines(
            self.root,
            clock=SystemClock(),
            images={"cloudtrain-trainer": [sys.executable, "-c", TRAINER], **self.images},
            readable=self.readable,
            without_namespaces=self.without_namespaces,
        )

    def imds_url(self, machines: Any) -> str:
        return output(machines, 'printf %s "$CLOUDTRAIN_IMDS"')

    def ask_imds(
        self, machines: Any, path: str, body: Any = None, headers: Mapping[str, str] | None = None, url: str = ""
    ) -> tuple[int, Any]:
        """url: of the VM's IMDS, for whom it would take too long to find out."""
        return imds(url or self.imds_url(machines), path, body, headers)

    def lose_host(self) -> None:
        """Without a word to the machine."""
        os.kill(supervisor(self), signal.SIGKILL)

    def starter(self) -> "subprocess.Popen[bytes]":
        return starter(self)

    def left(self) -> list[Any]:
        """What of a VM that is off still runs."""
        return supervisors(self)

    def strays(self) -> list[str]:
        """What they are while the VM exists and is off."""
        return []

    def traces(self) -> list[Any]:
        """What is left after an erase."""
        mounted = str(self.root) in Path("/proc/self/mountinfo").read_text()
        return [*self.root.iterdir(), *supervisors(self), *(["mounts"] if mounted else [])]


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for what must come about, and no longer."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come about in time")


def finish(machines: Any, key: str) -> ScriptResult:
    def ended() -> ScriptResult | None:
        result = machines.script(VM, key)
        return None if result.state in (ScriptState.PENDING, ScriptState.RUNNING) else result

    result: ScriptResult = until(ended)
    return result


def run(machines: Any, text: str, flavour: Any = "managed", **more: Any) -> ScriptResult:
    return finish(machines, machines.start_script(VM, Script(flavour, "test", text, **more)))


def output(machines: Any, text: str) -> str:
    result = run(machines, text)
    assert result.state is ScriptState.SUCCEEDED, result
    return result.stdout.decode()


def processes_with(marker: str) -> list[int]:
    """Those that have it as one word of their command line, as the host sees them."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if marker.encode() in words:
                found.append(int(path.name))
    return found


def supervisors(world: World) -> list[int]:
    return processes_with(str(world.root / VM))


def supervisor(world: World) -> int:
    return int(json.loads((world.root / VM / "state.json").read_text())["supervisor"])


def imds(url: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        url + path,
        data=None if body is None else json.dumps(body).encode(),
        headers=dict({"Metadata": "true"} if headers is None else headers),
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            data = answer.read()
            return answer.status, json.loads(data) if data else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def starter(world: World) -> "subprocess.Popen[bytes]":
    """Another process that boots the VM; it prints a line before it does."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import machine_scenarios as s; from pathlib import Path\n"
        "w = s.World(Path(sys.argv[3]), without_namespaces=sys.argv[4] == 'True'); m = w.machines()\n"
        "print(flush=True); m.boot(s.SPEC)"
    )
    package = sys.modules["cloudtrain"].__file__ or ""
    places = [str(Path(__file__).parent), str(Path(package).parents[1]), str(world.root)]
    command = [sys.executable, "-c", code, *places, str(world.without_namespaces)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


# --- scenarios ------------------------------------------------------------------------------------------------


def power_goes_on_and_off(world: World) -> None:
    machines = world.machines()
    assert machines.power(VM).cause is OffCause.NEVER_STARTED
    machines.boot(SPEC)
    machines.boot(SPEC)
    power = world.machines().power(VM)
    assert (power.on, power.cause, power.boot) == (True, None, 1)
    assert machines.agent_ready(VM)
    machines.power_off(VM)
    machines.power_off(VM)
    assert machines.power(VM).cause is OffCause.POWERED_OFF
    assert not machines.agent_ready(VM)
    assert world.left() == []
    orders: list[Callable[[], object]] = [
        lambda: machines.start_script(VM, Script("action", "x", "true")),
        lambda: machines.evict(VM, 1),
        lambda: machines.reboot(VM),
    ]
    for order in orders:
        try:
            order()
        except MachineError as error:
            assert "off" in str(error)
        else:
            raise AssertionError("a VM that is off took an order")
    machines.boot(SPEC)
    assert machines.power(VM).boot == 2


def what_is_on_the_disk_survives(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    output(
        machines,
        'R="${CLOUDTRAIN_ROOT:-}"; mkdir -p $R/cloudtrain/models; '
        'for d in cloudtrain/models root home var mnt tmp; do echo kept > "$R/$d/file"; done',
    )
    look = (
        'cd "${CLOUDTRAIN_ROOT:-/}"; for d in cloudtrain/models root home var mnt tmp; do cat $d/file && echo $d; done'
    )
    machines.reboot(VM)
    kept = ["cloudtrain/models", "root", "home", "var", "mnt"]  # Ubuntu empties /tmp
    assert [word for word in run(machines, look).stdout.decode().split() if word != "kept"] == kept
    machines.power_off(VM)
    assert (machines.disk(VM) / "cloudtrain/models/file").read_text() == "kept\n"
    machines.boot(SPEC, same_host=True)
    assert [word for word in run(machines, look).stdout.decode().split() if word != "kept"] == kept
    machines.power_off(VM)
    machines.boot(SPEC)  # Azure's temporary disk is lost with the host
    assert [word for word in run(machines, look).stdout.decode().split() if word != "kept"] == kept[:-1]


def scripts_run_as_azures_agent_runs_them(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    root = str(machines.disk(VM)) if world.without_namespaces else ""
    report = 'pwd; stat -c %a script.sh; ls; echo "v=$NAME"; echo "args=$#:$1:$2"; echo oops >&2; exit 3'
    result = run(machines, report, arguments=["a b", "c"], environment={"NAME": "it's"})
    assert (result.state, result.exit_code) == (ScriptState.FAILED, 3)
    assert result.stdout.decode().split("\n") == [
        f"{root}/var/lib/waagent/run-command-handler/download/test/0",
        *("500", "script.sh", "stderr", "stdout", "v=it's", "args=2:a b:c", ""),
    ]
    assert result.stderr == b"oops\n"
    assert result.started is not None and result.ended is not None and result.started <= result.ended
    action = run(machines, "pwd\r\ntrue\r\n", "action")
    assert action.stdout.decode() == f"{root}/var/lib/waagent/run-command/download/0\n"
    shebang = f"#!{world.python}\nimport sys\nprint(sys.version_info[0], sys.argv[1])"
    assert run(machines, shebang, arguments=["x"]).stdout == b"3 x\n"
    shell = 'echo "bash=${BASH_VERSION:+yes}"'
    assert run(machines, shell).stdout == b"bash=yes\n"
    assert run(machines, f"#!/bin/bash\n{shell}", "action").stdout == b"bash=yes\n"
    long = run(machines, "seq 1 5000; seq 1 5000 >&2")
    assert len(long.stdout) == len(long.stderr) == 4096
    assert long.stdout.endswith(b"4999\n5000\n")
    unknown = run(machines, "true", run_as="nobody-like-this")
    assert unknown.state is ScriptState.FAILED and b"unknown user nobody-like-this" in unknown.stderr
    keys = {machines.start_script(VM, Script("managed", "test", "true")) for _ in range(3)}
    assert len(keys) == 3 and all(finish(machines, key).exit_code == 0 for key in keys)
    mine = Script("managed", "mine", 'echo run >> "${CLOUDTRAIN_ROOT:-}/root/mine"', token="t-1")
    again = {machines.start_script(VM, mine) for _ in range(3)}
    assert len(again) == 1 and finish(machines, again.pop()).exit_code == 0
    assert (machines.disk(VM) / "root/mine").read_text() == "run\n"
    try:
        machines.script(VM, "managed.never.0")
    except KeyError:
        return
    raise AssertionError("a key that it never gave was accepted")


def scripts_end_by_timeout_and_by_cancel(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    late = run(machines, "echo begun; sleep 300 & sleep 300", timeout_seconds=2)
    assert (late.state, late.exit_code, late.stdout) == (ScriptState.TIMED_OUT, None, b"begun\n")
    marker = f"3{os.getpid()}.5"
    script = Script("managed", "c", f"trap '' TERM; (sleep {marker}) & echo here; sleep {marker}")
    key = machines.start_script(VM, script)
    until(lambda: machines.script(VM, key).stdout and len(processes_with(marker)) == 2)
    assert machines.script(VM, key).state is ScriptState.RUNNING
    machines.cancel_script(VM, key)
    assert machines.script(VM, key).state is ScriptState.CANCELED
    assert processes_with(marker) == []
    machines.cancel_script(VM, key)
    left = f"left-{os.getpid()}"
    background = f"nohup sh -c 'while :; do sleep 0.05; done' {left} >/dev/null 2>&1 &"
    assert run(machines, background).state is ScriptState.SUCCEEDED
    until(lambda: processes_with(left))
    machines.power_off(VM)
    assert processes_with(left) == []


def an_interrupted_script_is_never_run_again(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    keys = []
    ends: list[Callable[[str], None]] = [
        machines.reboot,
        machines.power_off,
        lambda vm: machines.evict(vm, 0),
    ]
    for end in ends:
        text = 'echo run >> "${CLOUDTRAIN_ROOT:-}/root/runs"; echo on its way; sleep 600'
        key = machines.start_script(VM, Script("managed", "long", text))
        until(lambda key=key: machines.script(VM, key).stdout)
        keys.append(key)
        end(VM)
        result = machines.script(VM, key)
        assert (result.state, result.exit_code) == (ScriptState.INTERRUPTED, None)
        assert result.stdout == b"on its way\n"
        machines.boot(SPEC)
    assert len(set(keys)) == 3
    assert [machines.script(VM, key).state for key in keys] == [ScriptState.INTERRUPTED] * 3
    assert (machines.disk(VM) / "root/runs").read_text() == "run\n" * 3


def no_process_survives_a_cut(world: World) -> None:
    machines = world.machines()
    cuts: list[Callable[[], None]] = [
        lambda: machines.evict(VM, 0),
        lambda: machines.power_off(VM),
        world.lose_host,
    ]
    for number, cut in enumerate(cuts):
        machines.boot(SPEC)
        marker = f"hostile-{os.getpid()}-{number}"
        run(machines, f"#!{world.python}\nimport sys; sys.argv = ['x', '{marker}']\n{HOSTILE}")
        until(lambda marker=marker: len(processes_with(marker)) >= 3)
        cut()
        until(lambda: not machines.power(VM).on)
        assert processes_with(marker) == []
    assert machines.power(VM).cause is OffCause.SUPERVISOR_DIED
    assert machines.strays() == world.strays()
    machines.boot(SPEC)
    assert machines.power(VM).on


def a_hung_supervisor_does_not_keep_its_vm_on(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    os.kill(supervisor(world), signal.SIGSTOP)
    machines.impatience = 0.5
    machines.power_off(VM)
    assert not machines.power(VM).on
    assert world.left() == []


def a_host_that_rebooted_is_noticed(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    state = world.root / VM / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "host_boot": "another boot"}))
    os.kill(supervisor(world), signal.SIGKILL)
    until(lambda: not machines.power(VM).on)
    assert machines.power(VM).cause is OffCause.HOST_REBOOTED
    machines.boot(SPEC)
    assert machines.power(VM).boot == 2


def an_eviction_gives_notice_and_then_cuts(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    status, idle = world.ask_imds(machines, EVENTS)
    assert (status, idle["Events"]) == (200, [])
    assert world.ask_imds(machines, EVENTS, headers={})[0] == 400
    assert world.ask_imds(machines, "/metadata/scheduledevents")[0] == 400
    url = world.imds_url(machines)
    begun = time.time()
    machines.evict(VM, 3.0)
    assert machines.power(VM).on
    _, document = world.ask_imds(machines, EVENTS, url=url)
    assert document["DocumentIncarnation"] > idle["DocumentIncarnation"]
    [event] = document["Events"]
    assert (event["EventType"], event["EventStatus"], event["EventSource"]) == (
        "Preempt",
        "Scheduled",
        "Platform",
    )
    assert (event["Resources"], event["DurationInSeconds"]) == (["run-g1"], -1)
    assert abs(parsedate_to_datetime(event["NotBefore"]).timestamp() - begun - 3) < 1.5
    until(lambda: not machines.power(VM).on)
    assert time.time() - begun >= 3.0
    assert machines.power(VM).cause is OffCause.EVICTED
    machines.boot(SPEC)
    assert world.ask_imds(machines, EVENTS)[1]["Events"] == []


def an_acknowledgement_brings_the_eviction_forward(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    url = world.imds_url(machines)
    machines.reboot(VM)
    assert world.imds_url(machines) == url
    machines.evict(VM, 60.0)
    [event] = world.ask_imds(machines, EVENTS)[1]["Events"]
    assert world.ask_imds(machines, EVENTS, {"StartRequests": [{"EventId": "not there"}]})[0] == 400
    assert world.ask_imds(machines, EVENTS, ["nonsense"])[0] == 400
    assert machines.power(VM).on
    assert world.ask_imds(machines, EVENTS, {"StartRequests": [{"EventId": event["EventId"]}]}) == (200, None)
    until(lambda: not machines.power(VM).on, 5)
    assert machines.power(VM).cause is OffCause.EVICTED


def the_instance_document_describes_the_vm(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    _, document = world.ask_imds(machines, "/metadata/instance?api-version=2021-02-01")
    compute = document["compute"]
    assert (compute["name"], compute["vmId"], compute["priority"]) == ("run-g1", VM, "Spot")
    assert compute["userData"] == "aGVsbG8="
    assert {"name": "generation", "value": "1"} in compute["tagsList"]
    assert document["network"]["interface"][0]["ipv4"]["ipAddress"][0]["privateIpAddress"] == "10.0.0.4"
    from_inside = (
        f"#!{world.python}\nimport os, urllib.request as u\n"
        "path = '/metadata/instance/compute/location?api-version=2021-02-01&format=text'\n"
        "url = os.environ.get('CLOUDTRAIN_IMDS', 'http://169.254.169.254') + path\n"
        "request = u.Request(url, headers={'Metadata': 'true'})\n"
        "print(u.urlopen(request).read().decode())"
    )
    assert output(machines, from_inside) == "eastus\n"
    assert world.ask_imds(machines, "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x")[0] == 400


def cron_runs_reboot_lines_at_each_boot(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    assert run(machines, "crontab -l").stderr == b"no crontab for root\n"
    bad = run(machines, "printf '61 * * * * true\\n' > bad; crontab bad")
    assert bad.exit_code == 1
    assert bad.stderr == b'"bad":0: bad minute\nerrors in crontab file, can\'t install.\n'
    assert run(machines, "printf '@reboot true' | crontab -").exit_code == 1  # no newline at its end
    tab = (
        "# a comment\nGREETING='hello there'\n"
        '@reboot env > "$HOME/env"; for p in crontab docker sudo; do command -v $p >> $HOME/which; done\n'
        "@reboot cat > $HOME/input%first%second\n*/5 0-23 1,15 jan-dec mon true\n"
    )
    run(machines, f"crontab - <<'END'\n{tab}END")
    assert output(machines, "crontab -l") == tab
    home = machines.disk(VM) / "root"
    assert not (home / "env").exists()
    machines.reboot(VM)
    until(lambda: (home / "which").exists() and len((home / "which").read_text().split()) == 3)
    environment = dict(line.split("=", 1) for line in (home / "env").read_text().splitlines())
    assert environment["GREETING"] == "hello there"
    assert (environment["SHELL"], environment["LOGNAME"]) == ("/bin/sh", "root")
    assert environment["PATH"].endswith("/usr/bin:/bin")
    assert environment.get("CLOUDTRAIN_IMDS", "http://169.254.169.254") == world.imds_url(machines)
    until(lambda: (home / "input").exists() and (home / "input").read_text() == "first\nsecond\n")
    (home / "which").unlink()
    machines.power_off(VM)
    machines.boot(SPEC)
    until(lambda: (home / "which").exists())
    run(machines, "crontab -r")
    assert run(machines, "crontab -l").exit_code == 1


def docker_runs_the_trainer(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    models = machines.disk(VM) / "cloudtrain/models"
    begin = (
        'R="${CLOUDTRAIN_ROOT:-}"; mkdir -p $R/cloudtrain/models; docker run -d --name cloudtrain-trainer --init '
        "--label run=r -v $R/cloudtrain/models:/app/Saved_Model -e CHECKPOINT_DIR=/app/Saved_Model "
        "cloudtrain-trainer --dataset silhouettes"
    )
    identifier = output(machines, begin).strip()
    assert re.fullmatch(r"[0-9a-f]{64}", identifier)
    until((models / "begun").exists)
    taken = run(machines, begin)
    assert taken.exit_code == 125 and b"is already in use by container" in taken.stderr
    state = "docker inspect --type container -f '{{.State.Status}} {{.State.ExitCode}} {{.State.Running}}'"
    assert output(machines, f"{state} cloudtrain-trainer") == "running 0 true\n"
    labels = "'{{index .Config.Labels \"run\"}} {{json .Config.Labels}} {{.Name}}'"
    assert output(machines, f"docker inspect -f {labels} {identifier}") == 'r {"run":"r"} /cloudtrain-trainer\n'
    assert output(machines, "docker ps -q --filter name=cloudtrain-trainer") == identifier[:12] + "\n"
    listed = output(machines, "docker container ls --format '{{.Names}} {{.Label \"run\"}}'")
    assert listed == "cloudtrain-trainer r\n"
    assert run(machines, "docker rm cloudtrain-trainer").exit_code == 1
    waiting = machines.start_script(VM, Script("managed", "wait", "docker wait cloudtrain-trainer"))
    assert output(machines, "docker kill --signal TERM cloudtrain-trainer") == "cloudtrain-trainer\n"
    assert finish(machines, waiting).stdout == b"75\n"
    assert (models / "saved").read_text() == "saved"
    assert output(machines, f"{state} {identifier[:8]}") == "exited 75 false\n"
    logged = run(machines, "docker logs cloudtrain-trainer")
    assert (logged.stdout, logged.stderr) == (b"begun --dataset silhouettes\nsaved\n", b"a warning\n")
    assert output(machines, "docker logs --tail 1 cloudtrain-trainer 2>&1") == "saved\n"
    stamped = output(machines, "docker logs -t --since 10m cloudtrain-trainer 2>/dev/null")
    assert re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z begun", stamped)
    assert output(machines, "docker logs --since 2099-01-01T00:00:00Z cloudtrain-trainer 2>&1") == ""
    assert b"annot kill container" in run(machines, "docker kill cloudtrain-trainer").stderr  # as the version writes it
    assert output(machines, "docker start cloudtrain-trainer") == "cloudtrain-trainer\n"
    killed = output(machines, "docker kill cloudtrain-trainer; docker wait cloudtrain-trainer")
    assert killed == "cloudtrain-trainer\n137\n"
    assert output(machines, "docker rm -f cloudtrain-trainer; docker ps -aq") == "cloudtrain-trainer\n"


def docker_answers_as_docker_does(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    for line, code, stdout, stderr in (
        ("docker info --format '{{.ServerVersion}}'", 0, r"\d+\.\d+\.\d+\n", ""),
        ("docker version", 0, r"Client:.*Server.*", ""),
        (
            "docker image inspect cloudtrain-trainer:latest -f '{{.RepoTags}}'",
            0,
            r"\[cloudtrain-trainer:latest\]\n",
            "",
        ),
        ("docker image inspect other", 1, r"\[\]\n", r"Error: No such image: other\n"),
        ("docker pull cloudtrain-trainer", 0, r".*Image is up to date.*", ""),
        ("docker pull other", 1, "", r".*pull access denied for other.*holds only the trainer.*"),
        ("docker run other", 125, "", r"Unable to find image 'other:latest' locally\ndocker: Error.*"),
        ("docker run --privileged cloudtrain-trainer", 125, "", r"unknown flag: --privileged.*"),
        ("docker run --restart always cloudtrain-trainer", 125, "", r".*restart policies.*"),
        ("docker run -v rel:x cloudtrain-trainer", 125, "", r"docker: invalid volume.*"),
        ("docker swarm init", 1, "", r"docker: 'swarm' is not a docker command.*"),
        ("docker inspect --type container none", 1, r"\[\]\n", r".*No such container: none\n"),
        ("docker wait none", 1, "", r"Error response from daemon: No such container: none\n"),
        ("docker rm -f none", 0, "", r".*No such container: none\n"),
        ("docker container run --rm cloudtrain-trainer --end 7", 7, r"begun --end 7\n", r"a warning\n"),
        (
            "docker run --rm --init cloudtrain-trainer --end 0; docker ps -aq",
            0,
            r"begun --end 0\n",
            r"a warning\n",
        ),
    ):
        result = run(machines, line)
        assert result.exit_code == code, (line, result)
        assert re.fullmatch(stdout, result.stdout.decode(), re.S), (line, result)
        assert re.fullmatch(stderr, result.stderr.decode(), re.S), (line, result)


def a_killed_docker_client_leaves_the_container_alone(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    home = machines.disk(VM) / "root"
    client = (
        'cd "${CLOUDTRAIN_ROOT:-}/root"; mkdir -p m; echo $$ > pid; '
        "exec docker run --name foreground -v $PWD/m:/app/Saved_Model cloudtrain-trainer"
    )
    key = machines.start_script(VM, Script("managed", "client", client))
    until((home / "m/begun").exists)
    output(machines, f"kill -9 $(cat {'${CLOUDTRAIN_ROOT:-}'}/root/pid)")
    assert finish(machines, key).exit_code == 137
    assert output(machines, "docker ps --format '{{.Names}} {{.State}}'") == "foreground running\n"
    machines.power_off(VM)
    machines.boot(SPEC)
    look = "docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' foreground"
    assert output(machines, look) == "exited 255\n"
    (home / "m/begun").unlink()
    output(machines, "docker start foreground")
    until((home / "m/begun").exists)
    machines.reboot(VM)  # an orderly shutdown stops containers as the engine does
    assert output(machines, look) == "exited 75\n"
    assert (home / "m/saved").exists()


def a_shutdown_asks_first(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    home = machines.disk(VM) / "root"
    polite = (
        'cd "${CLOUDTRAIN_ROOT:-}/root"; '
        "nohup sh -c 'trap \"touch asked; exit\" TERM; touch ready; while :; do sleep 0.01; done' >/dev/null 2>&1 &"
    )
    output(machines, polite)
    until((home / "ready").exists)
    begun = time.monotonic()
    machines.shut_down(VM)
    assert time.monotonic() - begun < 5
    assert (home / "asked").exists()
    assert machines.power(VM).cause is OffCause.POWERED_OFF
    machines.boot(SPEC)
    deaf = f"deaf-{os.getpid()}"
    run(machines, f"nohup sh -c 'trap \"\" TERM; while :; do sleep 0.01; done' {deaf} >/dev/null 2>&1 &")
    until(lambda: processes_with(deaf))
    machines.shut_down(VM, 0.3)
    assert processes_with(deaf) == []


def the_guest_can_reboot_and_switch_itself_off(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    machines.start_script(VM, Script("managed", "r", "sudo reboot"))
    until(lambda: machines.power(VM).boot == 2 and machines.agent_ready(VM))
    machines.start_script(VM, Script("managed", "r", "shutdown -h now"))
    until(lambda: not machines.power(VM).on)
    assert machines.power(VM).cause is OffCause.GUEST_SHUTDOWN


def several_that_boot_at_once_make_one_vm(world: World) -> None:
    starters = [world.starter() for _ in range(3)]
    assert [process.wait(60) for process in starters] == [0] * 3
    for process in starters:
        assert process.stdout is not None
        process.stdout.close()
    machines = world.machines()
    assert (machines.power(VM).on, machines.power(VM).boot) == (True, 1)
    machines.power_off(VM)
    assert world.left() == []


def a_starter_killed_at_any_moment_leaves_the_truth(world: World) -> None:
    machines = world.machines()
    for milliseconds in (0, 25, 60, 110):
        process = world.starter()
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(milliseconds / 1000)  # the moment is what varies here
        process.kill()
        process.wait()
        process.stdout.close()
        machines.boot(SPEC)
        assert machines.power(VM).on and machines.agent_ready(VM)
        machines.power_off(VM)
        until(lambda: world.left() == [])


def nothing_is_left_after_erase(world: World) -> None:
    machines = world.machines()
    machines.boot(SPEC)
    output(
        machines,
        'cd "${CLOUDTRAIN_ROOT:-}/root"; mkdir -p a/b m; touch a/b/c; chmod 0 a/b; chmod 0 a; '
        "docker run -d --name forgotten -v $PWD/m:/app/Saved_Model cloudtrain-trainer",
    )
    machines.erase(VM)
    machines.erase(VM)
    assert world.traces() == []
    assert machines.power(VM).cause is OffCause.NEVER_STARTED
    assert machines.strays() == []


# --- scenarios that need namespaces ---------------------------------------------------------------------------

MAKE = """
mkdir /tutorial
mkdir /tutorial/models
touch /tutorial/models/log.txt
touch /tutorial/startup-script.sh
cat <<EOF > /tutorial/startup-script.sh
#\\!/bin/bash
docker container run -v /tutorial/models:/app/Saved_Model miltonius/cloud_trainingv2\x20
EOF
chmod +x /tutorial/startup-script.sh"""
SCHEDULE = """
sudo crontab -l > cron_bkp
sudo echo '@reboot sudo /tutorial/startup-script.sh >/dev/null 2>&1' >> cron_bkp
sudo crontab cron_bkp
sudo rm cron_bkp"""
START = """
/tutorial/startup-script.sh"""


def the_tutorials_scripts_work_byte_for_byte(world: World) -> None:
    image = {"miltonius/cloud_trainingv2": [sys.executable, "-c", TRAINER]}
    machines = replace(world, images=image).machines()
    machines.boot(SPEC)
    made = run(machines, MAKE, "action")
    assert (made.exit_code, made.stderr) == (0, b"")
    scheduled = run(machines, SCHEDULE, "action")
    assert (scheduled.exit_code, scheduled.stderr) == (0, b"no crontab for root\n")
    key = machines.start_script(VM, Script("action", "start", START))
    begun = machines.disk(VM) / "tutorial/models/begun"
    first = until(lambda: begun.exists() and begun.read_text())
    machines.reboot(VM)
    assert machines.script(VM, key).state is ScriptState.INTERRUPTED
    until(lambda: begun.read_text() not in ("", first), seconds=60.0)
    assert output(machines, "cat /tutorial/models/saved") == "saved"
    assert len(output(machines, "docker container ls -q").split()) == 1


def the_host_is_out_of_sight(world: World) -> None:
    outside = world.root.parent
    for name in ("seen by the VM", "unseen"):
        (outside / name).mkdir()
        (outside / name / "file").write_text("x")
    (outside / "link").symlink_to(outside / "seen by the VM")
    machines = replace(world, readable=[outside / "link"]).machines()
    machines.boot(SPEC)
    disks = "ls /dev | grep -c '^[vsx]da' || true"
    assert output(machines, f"cat '{outside}/link/file'; hostname; {disks}") == "xrun-g1\n0\n"
    for line in (
        f"touch '{outside}/seen by the VM/new'",
        f"cat '{outside}/unseen/file'",
        "echo 1 > /proc/sys/vm/swappiness",
        "echo > /sys/kernel/uevent_seqnum",
        f"ls {world.root}",
    ):
        assert run(machines, line).exit_code != 0, line
    output(machines, "echo mine > /usr/bin/mine; echo mine > /etc/mine; mkdir /mine")
    assert not any(Path(path).exists() for path in ("/usr/bin/mine", "/etc/mine", "/mine"))
    machines.reboot(VM)
    assert output(machines, "cat /usr/bin/mine /etc/mine; ls -d /mine") == "mine\nmine\n/mine\n"


def a_container_sees_only_its_own_files(world: World) -> None:
    look = "import os, socket\nprint(sorted(os.listdir('.')), os.getpid(), len(socket.gethostname()), dict(os.environ))"
    machines = replace(world, images={"look": [sys.executable, "-c", look]}).machines()
    machines.boot(SPEC)
    output(machines, "mkdir -p /cloudtrain/models /cloudtrain/secret")
    seen = output(machines, "LEAK=1 docker run --rm -v /cloudtrain/models:/app/Saved_Model -e A=b look")
    assert seen.startswith("['Saved_Model'] 1 12 ")
    assert "'A': 'b'" in seen and "LEAK" not in seen and "'HOME': '/root'" in seen
    assert not (machines.disk(VM) / "app").exists()


def only_a_container_with_an_init_dies_of_sigterm(world: World) -> None:
    """pid 1 of a pid namespace does not hear a signal that it has no handler for, in docker as here."""
    image = {"sleep": [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]}
    machines = replace(world, images=image).machines()
    machines.boot(SPEC)
    output(machines, "docker run -d --name plain sleep; docker run -d --name tiny --init sleep")
    until(lambda: output(machines, "docker logs plain; docker logs tiny") == "up\nup\n")
    output(machines, "docker kill -s TERM plain; docker kill -s TERM tiny")
    assert output(machines, "docker wait tiny; docker inspect -f '{{.State.Status}}' plain") == "143\nrunning\n"
    assert output(machines, "docker stop -t 0 plain; docker wait plain") == "plain\n137\n"


def _named(*scenarios: Callable[[World], None]) -> dict[str, Callable[[World], None]]:
    return {scenario.__name__: scenario for scenario in scenarios}


CORE = _named(
    power_goes_on_and_off,
    scripts_run_as_azures_agent_runs_them,
    scripts_end_by_timeout_and_by_cancel,
    an_interrupted_script_is_never_run_again,
    no_process_survives_a_cut,
    an_acknowledgement_brings_the_eviction_forward,
    cron_runs_reboot_lines_at_each_boot,
    docker_runs_the_trainer,
    a_killed_docker_client_leaves_the_container_alone,
    a_shutdown_asks_first,
    the_guest_can_reboot_and_switch_itself_off,
    several_that_boot_at_once_make_one_vm,
    nothing_is_left_after_erase,
)
MORE = _named(
    what_is_on_the_disk_survives,
    a_hung_supervisor_does_not_keep_its_vm_on,
    a_host_that_rebooted_is_noticed,
    an_eviction_gives_notice_and_then_cuts,
    the_instance_document_describes_the_vm,
    docker_answers_as_docker_does,
    a_starter_killed_at_any_moment_leaves_the_truth,
)
WITH_NAMESPACES = _named(
    the_tutorials_scripts_work_byte_for_byte,
    the_host_is_out_of_sight,
    a_container_sees_only_its_own_files,
    only_a_container_with_an_init_dies_of_sigterm,
)


def play(name: str, root: Path, *, without_namespaces: bool) -> None:
    """One scenario in a world of its own, which is taken down whatever happens."""
    world = World(root / "vms", without_namespaces)
    world.root.mkdir()
    try:
        {**CORE, **MORE, **WITH_NAMESPACES}[name](world)
    finally:
        for path in list(world.root.iterdir()):
            world.machines().erase(path.name)


def lay_an_overlay_over(place: Path) -> None:
    """As in a container: what is below `place` is an overlay, for this process and those it starts."""
    namespaces.unshare(namespaces.NEW_MOUNT)
    namespaces.make_private()
    layers = {name: place / name for name in ("lower", "upper", "work")}
    for layer in layers.values():
        layer.mkdir()
    options = f"lowerdir={layers['lower']},upperdir={layers['upper']},workdir={layers['work']}"
    namespaces.mount("overlay", place, "overlay", 0, options)


if __name__ == "__main__":
    if sys.argv[3] == "on-an-overlay":
        lay_an_overlay_over(Path(sys.argv[2]))
    play(sys.argv[1], Path(sys.argv[2]), without_namespaces=sys.argv[3] == "without-namespaces")
