"""Wrong input: a clear error with the key, the value and what was expected, exit 2, and nothing made."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from .conftest import CommandLine

# cloudtrain.toml -> what the message has to say.
WRONG_FILES = {
    "unknown key, close to one": ("max_prize = 1", ["'max_prize'", "Did you mean 'max_price'"]),
    "unknown key, with a dash": ("max-price = 1", ["'max-price'", "Did you mean 'max_price'"]),
    "unknown key, like none": ("colour = 'red'", ["'colour'"]),
    "table": ("[azure]\nsize = 'Standard_D2s_v3'", ["'azure'"]),
    "number for text": ("location = 3", ["location", "3", "text in quotes"]),
    "text for number": ("disk_gb = 'big'", ["disk_gb", '"big"', "64"]),
    "truth for number": ("max_price = true", ["max_price", "true", "-1"]),
    "empty text": ("image = ''", ["image", '""']),
    "cloud": ("cloud = 'aws'", ["cloud", '"aws"', "embedded", "azure"]),
    "run": ("run = 'My_Run'", ["run", '"My_Run"', "small letters"]),
    "location with a space": ("location = 'East US'", ["location", '"East US"', "eastus"]),
    "size": ("size = 'D2s_v3'", ["size", '"D2s_v3"', "Standard_D2s_v3"]),
    "vm_image": ("vm_image = 'ubuntu'", ["vm_image", '"ubuntu"', "publisher:offer:sku:version"]),
    "vm_image with an empty part": ("vm_image = 'a:b::d'", ["vm_image", "publisher:offer:sku:version"]),
    "price of nothing": ("max_price = 0", ["max_price", "0", "above 0"]),
    "negative price": ("max_price = -2", ["max_price", "-2", "-1"]),
    "six decimals": ("max_price = 0.123456", ["max_price", "0.123456", "5 decimals"]),
    "infinite price": ("max_price = inf", ["max_price", "inf"]),
    "price that is no number": ("max_price = nan", ["max_price", "nan"]),
    "policy unknown": ("eviction_policy = 'Keep'", ["eviction_policy", '"Keep"', "Deallocate", "Delete"]),
    "variable of the guest's own": ("env = { CHECKPOINT_DIR = '/x' }", ["env", "CHECKPOINT_DIR is set by cloudtrain"]),
    "variable without value": ("env = ['A']", ["env", "--env LOG_LEVEL=debug"]),
    "number as variable": ("env = { A = 3 }", ["env", "names and texts"]),
    "name with a dash": ("env = { A-B = 'x' }", ["env", "'_'"]),
    "variable too long": (f"env = {{ A = '{'x' * 5000}' }}", ["env", "4096 bytes"]),
    "secret of the guest's own": ("secrets = ['TFDS_DATA_DIR']", ["secrets", "TFDS_DATA_DIR"]),
    "secret that docker reads": ("secrets = ['LD_PRELOAD']", ["secrets", "LD_...", "Docker itself reads"]),
    "secrets in one text": ("secrets = 'A'", ["secrets", "a list of names"]),
    "end of no kind": ("when_done = 'burn'", ["when_done", '"burn"', '"deallocate"', '"keep"']),
    "image in capitals": ("image = 'Team/Trainer:1'", ["image", '"Team/Trainer:1"', "team/trainer:1"]),
    "image with a space": ("image = 'team/trainer one'", ["image", "Docker image reference"]),
    "relative mount": ("mount = 'models'", ["mount", '"models"', "absolute path"]),
    "mount of everything": ("mount = '/'", ["mount", '"/"', "absolute path"]),
    "mount upwards": ("mount = '/app/../etc'", ["mount", "absolute path"]),
    "mount with a colon": ("mount = '/app:ro'", ["mount", "':'"]),
    "mount over the data": ("mount = '/data'", ["mount", "data sets"]),
    "disk too small": ("disk_gb = 30", ["disk_gb", "30", "64"]),
    "disk too large": ("disk_gb = 5000", ["disk_gb", "5000", "4095"]),
    "disk in parts": ("disk_gb = 64.5", ["disk_gb", "64.5", "whole number"]),
    "no key file": ("ssh_key = 'nowhere.pub'", ["ssh_key", "nowhere.pub", "No such file"]),
    "subscription": ("subscription = 'mine'", ["subscription", '"mine"', "00000000-"]),
    "arguments in one text": ("trainer_args = '--epochs 3'", ["trainer_args", "list"]),
    "number among arguments": ("trainer_args = ['--epochs', 3]", ["trainer_args", '"3"']),
    "NUL among arguments": ('trainer_args = ["a\\u0000b"]', ["trainer_args", "NUL"]),
    "not TOML": ("run = \n", ["not valid TOML", "line 1, column 7"]),
    "twice": ("run = 'a'\nrun = 'b'\n", ["not valid TOML", "line 2"]),
    "text without quotes": ("location = eastus", ["not valid TOML", "line 1"]),
}


@pytest.mark.parametrize(("text", "parts"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file_is_refused_before_anything_is_made(
    quick: Any, cloudtrain: CommandLine, text: str, parts: list[str]
) -> None:
    cloudtrain.write(text)
    told = quick("up", "horses", "--json")
    assert told.code == 2
    assert told.error["code"] == "InvalidSpec"
    said = told.error["message"] + told.error["hint"]
    assert "cloudtrain.toml" in said
    for part in parts:
        assert part in said, said
    assert cloudtrain.made() == []


@pytest.mark.parametrize("content", [b"run = '\xff'", "run = 'a'".encode("utf-16")], ids=["latin", "utf-16"])
def test_a_file_in_another_encoding_is_refused(quick: Any, cloudtrain: CommandLine, content: bytes) -> None:
    cloudtrain.write(content)
    told = quick("up", "--json")
    assert (told.code, told.error["code"]) == (2, "InvalidSpec")
    assert "UTF-8" in told.error["message"]


def test_a_directory_in_the_files_place_is_refused(quick: Any, cloudtrain: CommandLine) -> None:
    (cloudtrain.directory / "cloudtrain.toml").mkdir()
    assert "Is a directory" in quick("up", "--json").error["message"]


# Command line -> what the message has to say.
WRONG_LINES = {
    "unknown verb": (["upp"], ["upp", "'up'"]),
    "unknown flag": (["up", "--sise", "x"], ["--sise", "--size"]),
    "flag of another verb": (["status", "--notice", "3"], ["--notice"]),
    "two runs": (["status", "a", "b"], ["unexpected extra argument"]),
    "flag without value": (["up", "--size"], ["--size", "requires an argument"]),
    "price in words": (["up", "--max-price", "cheap"], ["--max-price", "cheap"]),
    "disk in words": (["up", "--disk-gb", "big"], ["--disk-gb", "big"]),
    "unknown cloud": (["list", "--cloud", "aws"], ["--cloud", "aws", "embedded"]),
    "notice in words": (["simulate-eviction", "x", "--notice", "soon"], ["--notice", "soon"]),
    "unknown log": (["logs", "x", "--source", "kernel"], ["--source", "kernel", "eviction"]),
    "negative notice": (["simulate-eviction", "x", "--notice", "-1"], ["--notice", "-1"]),
    "endless notice": (["simulate-eviction", "x", "--notice", "inf"], ["--notice", "inf"]),
    "arguments where no trainer starts": (["status", "x", "--", "--epochs"], ["--", "only up"]),
    "ssh for everybody": (["up", "--ssh", "0.0.0.0/0"], ["--ssh", "everybody"]),
    "ssh for a tenth of everybody": (["up", "--ssh", "10.0.0.0/4"], ["--ssh", "far too many"]),
    "ssh over IPv6": (["up", "--ssh", "2001:db8::/64"], ["--ssh", "IPv4"]),
    "ssh for a star": (["up", "--ssh", "*"], ["--ssh", "203.0.113.0/24"]),
    "unknown machine": (["up", "--machine", "horse"], ["--machine", "process", "container"]),
    "verb of nobody": (["emulator", "serv"], ["serv"]),
    "reset unasked": (["emulator", "reset"], ["--yes"]),
}


@pytest.mark.parametrize(("line", "parts"), WRONG_LINES.values(), ids=WRONG_LINES)
def test_a_wrong_command_line_is_refused_in_words_and_in_json(
    quick: Any, cloudtrain: CommandLine, line: list[str], parts: list[str]
) -> None:
    verbs = 2 if line[0] == "emulator" else 1
    told = quick(*line[:verbs], "--json", *line[verbs:])
    assert told.code == 2
    in_words = quick(*line)
    assert in_words.code == 2 and in_words.out == "" and in_words.err.startswith("error: ")
    for part in parts:
        assert part in told.error["message"] + told.error["hint"], told.error
        assert part in in_words.err
    assert told.error["hint"]
    assert cloudtrain.made() == []


@pytest.mark.parametrize("line", [["horses", "--ssh"], ["--ssh", "horses"], ["horses", "--ssh", "198.51.100.7"]])
def test_ssh_is_refused_where_no_server_is(quick: Any, line: list[str]) -> None:
    told = quick("up", *line, "--json")
    assert (told.code, told.error["code"]) == (2, "InvalidSpec")
    assert "no SSH server" in told.error["message"]
    assert "up horses --machine container --ssh" in told.error["hint"]
    assert quick("list", "--json").envelope["data"]["runs"] == []


def test_machines_are_a_rehearsals_own(quick: Any) -> None:
    told = quick("up", "horses", "--cloud", "azure", "--machine", "container", "--json")
    assert (told.code, told.error["code"]) == (2, "Usage")


NAMES = ["", "-", "Horses", "9lives", "a-", "a_b", "a b", "ä", "a" * 41, "../etc", "a/b", "run-g2", "a\nb", "a.b"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ["up", "down"])
def test_an_impossible_name_is_refused(quick: Any, cloudtrain: CommandLine, verb: str, name: str) -> None:
    told = quick(verb, name, "--json")
    assert told.code == 2
    assert told.error["code"] in ("InvalidSpec", "Usage")
    assert cloudtrain.made() == []


def test_flags_are_checked_as_the_file_is_and_win_over_it(quick: Any, cloudtrain: CommandLine) -> None:
    cloudtrain.write("eviction_policy = 'Deallocate'\nsize = 'Standard_D2s_v3'")
    told = quick("up", "--eviction-policy", "Keep", "--json")
    assert told.error["message"].startswith('--eviction-policy is "Keep"')
    told = quick("up", "--size", "D2s", "--json")
    assert told.error["message"].startswith('--size is "D2s"')


def test_a_secret_that_was_written_where_its_name_belongs_is_refused_and_not_repeated(
    quick: Any, cloudtrain: CommandLine
) -> None:
    told = quick("up", "horses", "--secret", "TOKEN=hunter2", "--json")
    assert (told.code, told.error["code"]) == (2, "InvalidSpec")
    assert "--secret" in told.error["message"] and "hunter2" not in told.out + told.err
    cloudtrain.write("secrets = ['TOKEN=hunter2']")
    told = quick("up", "horses", "--json")
    assert told.code == 2 and "hunter2" not in told.out + told.err


def test_a_secret_whose_value_is_not_at_hand_is_refused_before_anything_is_made(
    quick: Any, cloudtrain: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKEN", raising=False)
    told = quick("up", "horses", "--secret", "TOKEN", "--json")
    assert (told.code, told.error["code"]) == (2, "SecretMissing") and "TOKEN" in told.error["message"]
    told = quick("up", "horses", "--secret", "TOKEN=@nowhere", "--json")
    assert told.code == 2 and "nowhere" in told.error["message"]
    assert quick("list", "--json").envelope["data"]["runs"] == []


def test_a_slip_elsewhere_in_the_file_stops_no_other_verb(quick: Any, cloudtrain: CommandLine) -> None:
    cloudtrain.write("cloud = 'aws'\nmax_prize = 3")
    assert quick("status", "--json").error["message"].startswith("cloudtrain.toml: cloud")
    cloudtrain.write("run = 'a-'\nmax_prize = 3")
    assert quick("down", "--json").error["message"].startswith("cloudtrain.toml: run")


def public_keys() -> dict[str, tuple[str, list[str]]]:
    """File content -> what the message has to say."""
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    curve = ec.generate_private_key(ec.SECP256R1())
    edwards = ed25519.Ed25519PrivateKey.generate()
    openssh = (Encoding.OpenSSH, PublicFormat.OpenSSH)
    good = edwards.public_key().public_bytes(*openssh).decode()
    private = edwards.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return {
        "private": (private, ["private key", "key.pub"]),
        "small RSA": (small.public_key().public_bytes(*openssh).decode(), ["2048", "1024"]),
        "curve that Azure does not take": (curve.public_key().public_bytes(*openssh).decode(), ["ssh-ed25519"]),
        "two keys": (f"{good}\n{good}\n", ["one line"]),
        "cut short": (good[:40], ["damaged"]),
        "empty": ("", ["one line"]),
        "text": ("hello world\n", ["one line"]),
        "options before the key": (f"no-pty {good}", ["one line"]),
    }


PUBLIC_KEYS = public_keys()


@pytest.mark.parametrize(("content", "parts"), PUBLIC_KEYS.values(), ids=PUBLIC_KEYS)
def test_a_file_that_is_no_public_key_is_refused(
    quick: Any, cloudtrain: CommandLine, content: str, parts: list[str]
) -> None:
    (cloudtrain.directory / "key").write_text(content)
    told = quick("up", "--ssh-key", "key", "--json")
    assert (told.code, told.error["code"]) == (2, "InvalidSpec")
    assert told.error["message"].startswith('--ssh-key is "key"')
    for part in parts:
        assert part in told.error["message"] + told.error["hint"], told.error
    assert cloudtrain.made() == []


def test_a_home_that_is_a_file_is_told_in_one_line(cloudtrain: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    told = cloudtrain("list")
    assert told.code == 1 and "Traceback" not in told.err
    assert "CLOUDTRAIN_HOME" in told.err


def test_the_directory_names_the_run_or_says_that_it_cannot(cloudtrain: CommandLine, tmp_path: Path) -> None:
    nameless = tmp_path / "123"
    nameless.mkdir()
    told = CommandLine(cloudtrain.home, nameless)("up", "--json")
    assert (told.code, told.error["code"]) == (2, "InvalidSpec")
    assert "123" in told.error["message"]


def test_a_run_known_on_azure_alone_is_not_rehearsed_nor_paid_for_by_accident(
    quick: Any, cloudtrain: CommandLine
) -> None:
    remember(cloudtrain, "azure", "horses")
    told = quick("up", "horses", "--json")
    assert (told.code, told.error["code"]) == (2, "CloudNotChosen")
    assert "--cloud azure" in told.error["message"] and "--cloud embedded" in told.error["hint"]


def test_a_name_known_on_both_clouds_has_to_be_told_apart(quick: Any, cloudtrain: CommandLine) -> None:
    remember(cloudtrain, "azure", "horses")
    remember(cloudtrain, "embedded", "horses")
    told = quick("down", "horses", "--json")
    assert (told.code, told.error["code"]) == (2, "CloudNotChosen")


def remember(cloudtrain: CommandLine, cloud: str, run: str) -> None:
    from cloudtrain import runs

    hint = runs.Hint(cloud, None, "eastus", f"cloudtrain-{run}", "2026-01-01T00:00:00+00:00")
    runs.remember(cloudtrain.home, run, hint)
