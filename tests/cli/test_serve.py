"""`emulator serve` and `emulator shell`, as other programs meet them. The real `az` is in tests/az."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.cli.conftest import CommandLine

VERSION = "?api-version=2022-12-01"


@contextmanager
def serving(cloudtrain: CommandLine, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process, and the line it writes."""
    with subprocess.Popen(
        [sys.executable, "-m", "cloudtrain", "emulator", "serve", "--json", *arguments],
        cwd=cloudtrain.directory,
        env=cloudtrain.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def ask(told: dict[str, Any], method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = HTTPConnection(urlsplit(told["url"]).netloc, timeout=30)
    given = {"Authorization": f"Bearer {told['token']}", **headers}
    connection.request(method, path, None if body is None else json.dumps(body), given)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content else None


def test_serve_answers_other_programs_until_it_is_interrupted(cloudtrain: CommandLine) -> None:
    for ending in (signal.SIGINT, signal.SIGTERM):
        with serving(cloudtrain) as (process, told):
            assert told["event"] == "serving" and told["url"].startswith("http://127.0.0.1:")
            status, body = ask(told, "GET", f"/subscriptions{VERSION}")
            assert (status, body["value"][0]["subscriptionId"]) == (200, told["subscription"])
            process.send_signal(ending)
            out, err = process.communicate(timeout=20)
            assert (process.returncode, out, err) == (0, "", "")


def test_serve_tells_each_request_when_it_is_asked_to(cloudtrain: CommandLine) -> None:
    with serving(cloudtrain, "-v") as (process, told):
        ask(told, "GET", f"/subscriptions{VERSION}", CommandName="account\x1b[31m list")
        ask(told, "GET", f"/subscriptions{VERSION}", Authorization="Bearer other")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert err.splitlines() == [
            "200 GET /subscriptions?api-version=2022-12-01  (az account list)",
            "401 GET /subscriptions?api-version=2022-12-01",
        ]
        assert told["token"] not in err


def test_serve_takes_only_its_token_and_only_its_own_name(cloudtrain: CommandLine) -> None:
    with serving(cloudtrain) as (_, told):
        path = f"/subscriptions{VERSION}"
        assert ask(told, "GET", path, Authorization="Bearer other")[0] == 401
        port = urlsplit(told["url"]).port
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", f"localhost:{port}.evil"):
            status, body = ask(told, "GET", path, Host=host)
            assert (status, body["error"]["code"]) == (400, "InvalidHostHeader"), host
        assert ask(told, "GET", path, Host=f"localhost:{port}")[0] == 200


def test_a_dropped_connection_is_one_for_other_programs_too(cloudtrain: CommandLine) -> None:
    for kind in ("drop-before", "drop-after"):
        assert cloudtrain("emulator", "fault", "add", kind, "--on", "Subscriptions_List").code == 0
    with serving(cloudtrain) as (process, told):
        for _ in range(2):
            with pytest.raises(RemoteDisconnected):
                ask(told, "GET", f"/subscriptions{VERSION}")
        assert ask(told, "GET", f"/subscriptions{VERSION}")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20) == ("", "")


def test_serve_listens_on_this_machine_alone(cloudtrain: CommandLine) -> None:
    with serving(cloudtrain) as (process, told):
        sockets = [line.split() for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]]
        port = f"{urlsplit(told['url']).port:04X}"
        listening = [words[1] for words in sockets if words[3] == "0A" and words[1].endswith(f":{port}")]
        assert listening == [f"0100007F:{port}"]
        six = Path(f"/proc/{process.pid}/net/tcp6")
        assert not six.exists() or f":{port} " not in six.read_text()


def test_serve_and_the_command_line_work_on_the_same_azure_at_once(cloudtrain: CommandLine) -> None:
    with serving(cloudtrain) as (_, told):
        group = f"/subscriptions/{told['subscription']}/resourcegroups/mine{VERSION}"
        assert ask(told, "PUT", group, {"location": "eastus"})[0] == 201
        status = cloudtrain("emulator", "status", "--json").envelope["data"]
        assert status["resource_groups"] == ["mine"]
        assert status["subscription_id"] == told["subscription"]


def test_what_a_killed_server_had_begun_the_next_one_ends(cloudtrain: CommandLine) -> None:
    resources = [
        {
            "type": "Microsoft.Network/networkSecurityGroups",
            "name": name,
            "apiVersion": "2022-01-01",
            "location": "eastus",
            "dependsOn": needs,
        }
        for name, needs in (("first", []), ("second", ["first"]), ("third", ["second"]))
    ]
    schema = "https://schema.management.azure.com/schemas/2015-01-01/deploymentTemplate.json#"
    template = {"$schema": schema, "contentVersion": "1.0.0.0", "resources": resources}
    with serving(cloudtrain) as (process, told):
        group = f"/subscriptions/{told['subscription']}/resourcegroups/g"
        deployment = f"{group}/providers/Microsoft.Resources/deployments/d{VERSION}"
        ask(told, "PUT", f"{group}{VERSION}", {"location": "eastus"})
        status, _ = ask(told, "PUT", deployment, {"properties": {"mode": "Incremental", "template": template}})
        assert status == 201
        process.kill()
    with serving(cloudtrain) as (_, told):
        deadline = time.monotonic() + 30
        while ask(told, "GET", deployment)[1]["properties"]["provisioningState"] == "Running":
            assert time.monotonic() < deadline
        shown = ask(told, "GET", deployment)[1]["properties"]
        assert (shown["provisioningState"], len(shown["outputResources"])) == ("Succeeded", 3)


def test_many_clients_at_once_each_get_their_answer(cloudtrain: CommandLine) -> None:
    with serving(cloudtrain) as (_, told), ThreadPoolExecutor(12) as pool:
        group = f"/subscriptions/{told['subscription']}/resourcegroups/"

        def make(number: int) -> tuple[int, int, int]:
            url = f"{group}g{number}{VERSION}"
            return (
                ask(told, "PUT", url, {"location": "eastus"})[0],
                ask(told, "GET", url)[0],
                ask(told, "DELETE", url)[0],
            )

        assert set(pool.map(make, range(24))) == {(201, 200, 202)}


def test_a_connection_stays_open_for_the_next_request(cloudtrain: CommandLine) -> None:
    with serving(cloudtrain) as (_, told):
        connection = HTTPConnection(urlsplit(told["url"]).netloc, timeout=30)
        for _ in range(3):
            connection.request("GET", f"/subscriptions{VERSION}", headers={"Authorization": f"Bearer {told['token']}"})
            answer = connection.getresponse()
            assert (answer.status, answer.version, answer.will_close) == (200, 11, False)
            answer.read()


def test_a_port_that_is_taken_is_told(cloudtrain: CommandLine) -> None:
    with serving(cloudtrain) as (_, told):
        again = cloudtrain("emulator", "serve", "--json", "--port", str(urlsplit(told["url"]).port))
        assert (again.code, again.error["code"]) == (2, "PortUnavailable")
        assert "Address already in use" in again.error["message"]


# the shell; `az` is a stand-in that notes how it was called

AZ = """#!/bin/sh
echo "$@" >> "$NOTES/calls"
if [ "$1" = login ]; then
  secret=${8#@}
  cat "$secret" > "$NOTES/secret"
  stat -c %a "$secret" > "$NOTES/mode"
  cat /proc/[0-9]*/cmdline > "$NOTES/processes" 2> /dev/null
fi
true
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where the stand-in writes; it lies in bin/ there."""
    (tmp_path / "notes/bin").mkdir(parents=True)
    az = tmp_path / "notes/bin/az"
    az.write_text(AZ)
    az.chmod(0o755)
    return tmp_path / "notes"


def shell(cloudtrain: CommandLine, notes: Path, *command: str, **environment: str) -> Any:
    path = f"{notes / 'bin'}:{os.environ['PATH']}"
    return cloudtrain(
        "emulator", "shell", *(["--", *command] if command else []), PATH=path, NOTES=str(notes), **environment
    )


def opened(cloudtrain: CommandLine) -> list[Path]:
    """What shells have on the disk."""
    return sorted((cloudtrain.home / "emulator/shells").glob("shell-*"))


def test_a_command_in_the_shell_has_its_output_and_exit_code(cloudtrain: CommandLine, notes: Path) -> None:
    told = shell(cloudtrain, notes, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (told.code, told.out, told.err.splitlines()[-1]) == (5, "out\n", "err")
    assert shell(cloudtrain, notes, "sh", "-c", "kill -TERM $$").code == 128 + signal.SIGTERM
    assert opened(cloudtrain) == []


def test_az_is_led_to_the_embedded_azure_and_to_nothing_else(cloudtrain: CommandLine, notes: Path) -> None:
    told = shell(
        cloudtrain,
        notes,
        "env",
        AZURE_CLIENT_SECRET="mine",
        ARM_CLOUD_METADATA_URL="https://elsewhere",
        NO_PROXY="example.com",
    )
    inside = dict(line.split("=", 1) for line in told.out.splitlines() if "=" in line)
    assert "AZURE_CLIENT_SECRET" not in inside and "ARM_CLOUD_METADATA_URL" not in inside
    assert inside["NO_PROXY"] == "example.com,127.0.0.1,localhost"
    assert inside["AZURE_CONFIG_DIR"].startswith(str(cloudtrain.home))
    assert inside["HOME"] == os.environ["HOME"]
    calls = (notes / "calls").read_text().splitlines()
    assert [call.split()[:2] for call in calls] == [
        ["cloud", "register"],
        ["cloud", "set"],
        ["login", "--service-principal"],
    ]
    assert "--endpoint-resource-manager https://127.0.0.1:" in calls[0]


def test_the_secret_is_on_no_command_line_and_only_the_user_can_read_it(cloudtrain: CommandLine, notes: Path) -> None:
    told = shell(cloudtrain, notes, "sh", "-c", 'cd "$AZURE_CONFIG_DIR/.." && stat -c "%a" . server.pem')
    secret = (notes / "secret").read_text()
    assert len(secret) > 30
    assert secret not in (notes / "calls").read_text() + (notes / "processes").read_text(errors="replace")
    assert ((notes / "mode").read_text().strip(), told.out.split()) == ("600", ["700", "600"])


CLIENT = """
import json, os, ssl, sys, urllib.error, urllib.parse, urllib.request
calls = open(os.environ["NOTES"] + "/calls").read().split()
url = calls[calls.index("--endpoint-resource-manager") + 1]
trusted = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
trusted.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does
def ask(path, form=None, **headers):
    data = urllib.parse.urlencode(form).encode() if form else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), context=trusted) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
cloud = ask("/metadata/endpoints?api-version=2022-09-01")[1]
tenant = calls[calls.index("--tenant") + 1]
openid = ask("/" + tenant + "/v2.0/.well-known/openid-configuration")[1]
form = {"client_id": calls[calls.index("-u") + 1], "client_secret": open(os.environ["NOTES"] + "/secret").read()}
token_path = urllib.parse.urlsplit(openid["token_endpoint"]).path
token = ask(token_path, form)[1]["access_token"]
listed = "/subscriptions?api-version=2022-12-01"
told = {
    "manager": cloud["resourceManager"] == url,
    "aliases": list(ask("/aliases.json")[1]["outputs"]["aliases"]["value"]["Linux"]),
    "wrong secret": ask(token_path, form | {"client_secret": "guess"})[0],
    "no secret": ask(token_path, {"client_id": form["client_id"]})[0],
    "with token": ask(listed, Authorization="Bearer " + token)[0],
    "without token": ask(listed)[0],
    "changed token": ask(listed, Authorization="Bearer " + token[:-2])[0],
    "unsigned token": ask(listed, Authorization="Bearer eyJhbGciOiJub25lIn0." + token.split(".")[1] + ".")[0],
}
try:
    told["another machine"] = urllib.request.urlopen(url.replace("127.0.0.1", "127.0.0.2") + listed, context=trusted)
except urllib.error.URLError:
    told["another machine"] = "refused"
print(json.dumps(told))
"""


def test_the_login_side_lets_in_only_who_has_the_secret(cloudtrain: CommandLine, notes: Path) -> None:
    told = json.loads(shell(cloudtrain, notes, sys.executable, "-c", CLIENT).out)
    assert told == {
        "manager": True,
        "aliases": ["Ubuntu2204", "Ubuntu2404"],
        "wrong secret": 401,
        "no secret": 401,
        "with token": 200,
        "without token": 401,
        "changed token": 401,
        "unsigned token": 401,
        "another machine": "refused",
    }


def test_the_next_shell_cleans_up_after_one_that_was_killed(cloudtrain: CommandLine, notes: Path) -> None:
    environment = cloudtrain.environment(PATH=f"{notes / 'bin'}:{os.environ['PATH']}", NOTES=str(notes))
    begin = [sys.executable, "-m", "cloudtrain", "emulator", "shell", "--", "sh", "-c", "echo $$; exec sleep 60"]
    processes = [
        subprocess.Popen(begin, env=environment, cwd=cloudtrain.directory, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    inner = [int(process.stdout.readline()) for process in processes if process.stdout]
    assert len(opened(cloudtrain)) == 2
    processes[0].kill()
    processes[0].wait()
    os.kill(inner[0], signal.SIGKILL)
    assert len(opened(cloudtrain)) == 2
    assert shell(cloudtrain, notes, "true").code == 0
    assert len(opened(cloudtrain)) == 1  # that of the one that goes on
    processes[1].send_signal(signal.SIGTERM)  # ends its command and cleans up itself
    assert processes[1].wait(20) == 128 + signal.SIGHUP
    assert opened(cloudtrain) == []
    deadline = time.monotonic() + 10
    while Path(f"/proc/{inner[1]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{inner[1]}").exists()
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()


def test_without_az_the_shell_says_how_to_get_it(cloudtrain: CommandLine, notes: Path) -> None:
    (notes / "bin/az").unlink()
    told = cloudtrain("emulator", "shell", PATH=str(notes / "bin"))
    assert told.code == 2 and "pip install azure-cli" in told.err
    assert opened(cloudtrain) == []


def test_an_az_that_cannot_sign_in_is_told_with_its_own_words(cloudtrain: CommandLine, notes: Path) -> None:
    (notes / "bin/az").write_text("#!/bin/sh\necho 'no such cloud' >&2; exit 1\n")
    told = shell(cloudtrain, notes, "true")
    assert told.code == 1 and "az cloud register: no such cloud" in told.err
    assert opened(cloudtrain) == []


def test_a_command_that_is_not_there_is_wrong_usage(cloudtrain: CommandLine, notes: Path) -> None:
    told = shell(cloudtrain, notes, "no-such-command")
    assert told.code == 2 and "no-such-command" in told.err


def test_arguments_after_dashes_are_for_up_and_the_shell(quick: Any) -> None:
    told = quick("status", "horses", "--json", "--", "x")
    assert (told.code, told.error["code"]) == (2, "Usage")


def test_the_homes_shells_directory_is_private(cloudtrain: CommandLine, notes: Path) -> None:
    shell(cloudtrain, notes, "true")
    assert stat.S_IMODE((cloudtrain.home / "emulator/shells").stat().st_mode) == 0o700
