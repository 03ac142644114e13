"""What every invocation promises: quick help, no escape codes without a terminal, one envelope, one way out."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import REPOSITORY, CommandLine

HEAVY = {"azure", "docker", "tensorflow", "requests", "werkzeug", "rich", "msgspec", "platformdirs", "cryptography"}
VERBS = [
    "up",
    "doctor",
    "status",
    "logs",
    "pull",
    "ssh",
    "stop",
    "restart",
    "watch",
    "history",
    "simulate-eviction",
    "down",
    "list",
    "emulator",
]
ENVELOPE = ["cloudtrain_result", "command", "run", "ok", "data", "errors"]


@pytest.mark.parametrize(
    "line", [["--help"], ["--version"], ["up", "--help"], ["pull", "--help"], ["--show-completion"]]
)
def test_help_version_and_completion_import_no_sdk(cloudtrain: CommandLine, line: list[str]) -> None:
    told = cloudtrain(*line, python=("-X", "importtime"), SHELL="/bin/bash")
    imported = {row.rpartition("|")[2].strip().partition(".")[0] for row in told.err.splitlines() if "|" in row}
    assert "typer" in imported
    assert imported & HEAVY == set()
    assert cloudtrain.made() == []


def test_ctrl_c_before_the_first_verb_is_known_is_quiet(cloudtrain: CommandLine, tmp_path: Path) -> None:
    """What typer stands for here is any import that Ctrl-C falls into."""
    (tmp_path / "typer.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    told = cloudtrain("list", PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}")
    assert (told.code, told.out, told.err) == (130, "", "")


def test_completion_offers_the_verbs(cloudtrain: CommandLine) -> None:
    told = cloudtrain(_CLOUDTRAIN_COMPLETE="complete_bash", COMP_WORDS="cloudtrain s", COMP_CWORD="1")
    assert set(told.out.split()) == {"status", "ssh", "stop", "simulate-eviction"}


def test_the_version_is_the_packages(cloudtrain: CommandLine) -> None:
    from cloudtrain import __version__

    told = cloudtrain("--version")
    assert (told.code, told.out) == (0, f"cloudtrain {__version__}\n")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(quick: Any, verb: str) -> None:
    told = quick(verb, "--help")
    assert told.code == 0 and "Usage: cloudtrain" in told.out
    if verb != "emulator":
        assert all(flag in told.out for flag in ("--json", "--quiet", "--verbose", "--cloud", "--subscription"))
        assert ("[RUN]" in told.out) == (verb != "list")


def test_no_command_is_wrong_usage_and_shows_the_verbs(quick: Any) -> None:
    told = quick()
    assert told.code == 2 and told.out == ""
    assert all(f"  {verb}" in told.err for verb in VERBS)
    assert quick("--json").error["code"] == "Usage"


@pytest.mark.parametrize("line", [["--help"], ["up", "--help"], ["upp"], ["up", "Bad"], []], ids=str)
def test_without_a_terminal_there_are_no_escape_codes(cloudtrain: CommandLine, line: list[str]) -> None:
    told = cloudtrain(*line, FORCE_COLOR="", TERM="xterm-256color")
    assert "\x1b" not in told.out + told.err


def test_on_a_terminal_an_error_is_red_unless_no_color(cloudtrain: CommandLine) -> None:
    assert b"\x1b[31merror: " in on_a_terminal(cloudtrain, ["up", "Bad"])
    assert b"\x1b" not in on_a_terminal(cloudtrain, ["up", "Bad"], NO_COLOR="1")
    assert b"\x1b" not in on_a_terminal(cloudtrain, ["up", "Bad"], TERM="dumb")


def on_a_terminal(cloudtrain: CommandLine, line: list[str], **environment: str) -> bytes:
    """What a terminal is sent."""
    command = [sys.executable, "-m", "cloudtrain", *line]
    return terminal_output(
        command, cloudtrain.environment(**{"TERM": "xterm", **environment}), str(cloudtrain.directory)
    )


def terminal_output(command: list[str], environment: dict[str, str], directory: str, typed: bytes = b"") -> bytes:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, cwd=directory, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    os.write(ours, typed)
    said = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            # Linux answers EIO once the other side is closed.
            chunk = b""
        if not chunk:
            break
        said += chunk
    os.close(ours)
    process.wait(timeout=30)
    return said


def test_the_envelope_has_its_six_keys_even_for_a_slip_of_the_pen(cloudtrain: CommandLine) -> None:
    for line in (["up", "Bad"], ["upp"], ["status", "--nothing"], ["list", "--cloud", "aws"]):
        told = cloudtrain(*line, "--json")
        assert list(told.envelope) == ENVELOPE
        assert told.envelope["cloudtrain_result"] == 1
        assert told.envelope["data"] is None
        assert list(told.error) == ["code", "message", "hint"]
        assert told.err == ""


def test_a_crash_speaks_the_envelope_too_and_shows_a_traceback_only_when_asked(
    quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("gone")

    monkeypatch.setattr("cloudtrain.config.read", broken)
    told = quick("list", "--json")
    assert (told.code, told.error["code"], told.envelope["command"]) == (1, "Unexpected", "list")
    assert "KeyError" in told.error["message"] and "-vv" in told.error["hint"]
    assert "Traceback" not in told.err
    assert "Traceback" in quick("list", "--json", "-vv").err


@pytest.mark.parametrize("verb", ["up", "status", "stop", "down"])
def test_ctrl_c_says_how_to_come_back(quick: Any, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cloudtrain.azure.session.open_session", interrupted)
    told = quick(verb, "horses")
    assert told.code == 130
    assert "cloudtrain status horses" in told.err
    if verb == "up":
        assert "cloudtrain up horses" in told.err
    assert quick(verb, "horses", "--json").error["code"] == "Interrupted"


def test_a_reader_that_leaves_is_no_drama(cloudtrain: CommandLine) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "cloudtrain", "up", "Bad", "--json"],
        cwd=cloudtrain.directory,
        env=cloudtrain.environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_environment_variable_never_chooses_azure(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def session(cloud: str, **_: object) -> None:
        asked.append(cloud)
        raise KeyboardInterrupt

    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", "11111111-2222-3333-4444-555555555555")
    monkeypatch.setenv("CLOUDTRAIN_CLOUD", "azure")
    monkeypatch.setattr("cloudtrain.azure.session.open_session", session)
    for verb in ("up", "down", "list", "status"):
        quick(verb)
    assert asked == ["embedded"] * 4


def test_which_cloud_a_verb_works_on(quick: Any, cloudtrain: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cli.test_bad_input import remember

    asked: list[tuple[str, str | None]] = []

    def session(cloud: str, *, subscription: str | None, **_: object) -> None:
        asked.append((cloud, subscription))
        raise KeyboardInterrupt

    monkeypatch.setattr("cloudtrain.azure.session.open_session", session)
    mine, other = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"
    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", mine)
    quick("status", "horses")
    remember(cloudtrain, "azure", "horses")
    quick("status", "horses")
    quick("status", "horses", "--cloud", "embedded")
    cloudtrain.write(f"cloud = 'azure'\nrun = 'horses'\nsubscription = '{other}'")
    quick("up")
    quick("up", "--subscription", mine)
    quick("list")
    quick("list", "--cloud", "embedded")
    assert asked == [
        ("embedded", None),
        ("azure", mine),
        ("embedded", None),
        ("azure", other),
        ("azure", mine),
        ("azure", other),
        ("embedded", None),
    ]


def test_the_answer_is_json_even_where_the_terminal_speaks_ascii(cloudtrain: CommandLine) -> None:
    told = cloudtrain("up", "ä", "--json", PYTHONIOENCODING="ascii")
    assert json.loads(told.out)["errors"][0]["message"].count("ä") == 1
    assert cloudtrain("up", "ä", PYTHONIOENCODING="ascii").code == 2
