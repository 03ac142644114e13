"""From `cloudtrain.toml` and the command line to what a verb works on: run, cloud and settings."""

import difflib
import os
import re
import tomllib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudtrain.errors import CloudtrainError, Exit, InvalidSpec
from cloudtrain.spec import CHECKS, Settings, check

FILE = "cloudtrain.toml"
# An image is used as it is, or built.
IMAGE = "image"
BUILDING = ("repository", "dockerfile", "context", "variant", "build_args")


@dataclass(frozen=True)
class Target:
    """What every verb works on. notes: what the user should know of the choice."""

    run: str
    cloud: str
    subscription: str | None
    notes: tuple[str, ...] = ()


def read(directory: Path) -> dict[str, object]:
    """The keys of `cloudtrain.toml` in `directory`, unchecked; empty when there is no such file.

    Raises InvalidSpec when it cannot be read or is not TOML, with line and column.
    """
    path = directory / FILE
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidSpec(f"{FILE} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidSpec(f"{FILE} is not UTF-8 text (at line {line}).", "Save it as UTF-8.") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidSpec(
            f"{FILE} is not valid TOML: {error}.",
            'A line reads  key = value , texts in quotes: location = "eastus"',
        ) from error


def settings_for_up(table: Mapping[str, object], flags: Mapping[str, object], directory: Path) -> Settings:
    """Every key of file and flags, checked; flags win. flags: None = not given. Raises InvalidSpec."""
    _refuse_unknown(table)
    checked: dict[str, Any] = {key: _from_file(table, key, directory) for key in CHECKS if key in table}
    given = {key: check(key, value, _flag_name(key)) for key, value in flags.items() if value is not None}
    for ours, theirs in (((IMAGE,), BUILDING), (BUILDING, (IMAGE,))):
        if any(key in given for key in ours):  # a flag wins over whatever of the file would contradict it
            checked = {key: value for key, value in checked.items() if key not in theirs}
    checked |= given
    _refuse_two_images(checked)
    checked.setdefault("run", run_from_directory(directory))
    return Settings(**checked)


def _refuse_two_images(checked: Mapping[str, Any]) -> None:
    if IMAGE in checked and "repository" in checked:
        raise InvalidSpec(
            f'image is "{checked[IMAGE]}", a published image, and repository is "{checked["repository"]}", where one '
            "would be pushed that is built here.",
            "Say one of the two.",
        )


def _refuse_unknown(table: Mapping[str, object]) -> None:
    for key in table:
        if key not in CHECKS:
            close = difflib.get_close_matches(key.replace("-", "_"), CHECKS, n=1)
            meant = f" Did you mean '{close[0]}'?" if close else ""
            raise InvalidSpec(f"{FILE}: there is no setting '{key}'.{meant}", f"The settings: {', '.join(CHECKS)}.")


def _from_file(table: Mapping[str, object], key: str, directory: Path) -> Any:
    value = table.get(key)
    if value is None:
        return None
    if key == "ssh_key" and isinstance(value, str) and value and not value.startswith(("ssh-", "~", "ecdsa-")):
        value = str(directory / value)
    if key == "secrets" and isinstance(value, list):
        value = [_beside(each, directory) for each in value]
    if key in ("dockerfile", "context") and isinstance(value, str) and value and not value.startswith("~"):
        value = str(directory / value)
    return check(key, value, f"{FILE}: {key}")


def _beside(secret: object, directory: Path) -> object:
    """NAME=@FILE, where FILE lies beside the file that names it."""
    if not isinstance(secret, str) or "=@" not in secret:
        return secret
    name, _, file = secret.partition("=@")
    return secret if not file or file.startswith("~") else f"{name}=@{directory / file}"


def secret_files(directory: Path) -> dict[str, str]:
    """Which files have the values of secrets, by `cloudtrain.toml` in `directory`; for verbs but `up`, which a slip in
    the file does not stop."""
    try:
        return dict(_from_file(read(directory), "secrets", directory) or ())
    except InvalidSpec:
        return {}


def _flag_name(key: str) -> str:
    if key == "run":
        return "The run's name"
    if key == "trainer_args":
        return "The trainer's argument list"
    if key == "build_args":
        return "--build-arg"
    if key == "secrets":
        return "--secret"
    if key in ("zones", "other_sizes", "other_locations"):
        return "--" + key.replace("_", "-").removesuffix("s")
    return "--" + key.replace("_", "-")


def run_from_directory(directory: Path) -> str:
    """The directory's name, made a valid run name. Raises InvalidSpec where nothing of it can be used."""
    plain = unicodedata.normalize("NFKD", directory.name).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", plain)
    name = re.sub(r"^[^a-z]+", "", name)[:40]
    name = re.sub(r"(-g[0-9]+|-)+$", "", name)
    if not name:
        raise InvalidSpec(
            f"The run has no name, and none can be made from this directory's ('{directory.name}').",
            f'Give one: cloudtrain up my-run, or run = "my-run" in {FILE}.',
        )
    return name


def name_note(run: str, named: bool, directory: Path) -> tuple[str, ...]:
    """A line for the user where the run got its name from a directory of another name."""
    if named or run == directory.name:
        return ()
    return (f"The run is called '{run}', after this directory ('{directory.name}' cannot be a run's name).",)


def target_for_up(settings: Settings, known: Sequence[str], notes: tuple[str, ...]) -> Target:
    """Where `up` works. known: the clouds where the index has a run of this name.

    Only --cloud azure or the file selects Azure, for it costs money: a run known on Azure alone is refused
    without it.
    """
    cloud = settings.cloud or "embedded"
    if settings.cloud is None and list(known) == ["azure"]:
        raise InvalidSpec(
            f"'{settings.run}' is a run on Azure: nothing but --cloud azure (or cloud = \"azure\" in {FILE}) "
            "makes cloudtrain spend money there.",
            f"cloudtrain up {settings.run} --cloud azure  goes on there; "
            f"cloudtrain up {settings.run} --cloud embedded  rehearses under the same name.",
            code="CloudNotChosen",
        )
    return Target(settings.run, cloud, subscription(settings.subscription, cloud), notes)


def target(
    table: Mapping[str, object],
    *,
    run: str | None,
    cloud: str | None,
    subscription_flag: str | None,
    directory: Path,
    clouds_of: Callable[[str], Sequence[str]],
) -> Target:
    """Where every verb but `up` works.

    Reads only the keys it needs, so that a slip elsewhere in the file stops no `down`.
    """
    checked = {key: _from_file(table, key, directory) for key in ("run", "cloud", "subscription")}
    flags = {"run": run, "cloud": cloud, "subscription": subscription_flag}
    said = {key: check(key, value, _flag_name(key)) for key, value in flags.items() if value is not None}
    name = said.get("run") or checked["run"] or run_from_directory(directory)
    place = said.get("cloud") or _known_cloud(name, clouds_of(name), checked["cloud"]) or "embedded"
    notes = name_note(name, bool(run or checked["run"]), directory)
    return Target(name, place, subscription(said.get("subscription") or checked["subscription"], place), notes)


def target_cloud(
    table: Mapping[str, object], cloud: str | None, subscription_flag: str | None, directory: Path
) -> Target:
    """Where a verb works that names no run (`list`): `run` is empty."""
    checked = {key: _from_file(table, key, directory) for key in ("cloud", "subscription")}
    flags = {"cloud": cloud, "subscription": subscription_flag}
    said = {key: check(key, value, _flag_name(key)) for key, value in flags.items() if value is not None}
    place = said.get("cloud") or checked["cloud"] or "embedded"
    return Target("", place, subscription(said.get("subscription") or checked["subscription"], place))


def _known_cloud(run: str, known: Sequence[str], configured: str | None) -> str | None:
    if len(known) < 2 or configured in known:
        return configured if configured in known else (known[0] if known else configured)
    raise CloudtrainError(
        "CloudNotChosen",
        f"There is a run '{run}' on Azure and a rehearsal of the same name.",
        "Say which: --cloud azure or --cloud embedded.",
        Exit.USAGE,
    )


def subscription(chosen: str | None, cloud: str) -> str | None:
    """The subscription: what was chosen, else AZURE_SUBSCRIPTION_ID. The embedded Azure has its own."""
    if cloud != "azure":
        return None
    from_environment = os.environ.get("AZURE_SUBSCRIPTION_ID")
    if chosen is None and from_environment:
        return str(check("subscription", from_environment, "AZURE_SUBSCRIPTION_ID"))
    return chosen
