"""RunSpec: what the user asked for, in `cloudtrain.toml` and by flags, checked once and then frozen."""

import base64
import binascii
import ipaddress
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from cloudtrain.errors import InvalidSpec


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a run is. It is kept, as JSON, in the tags of the run's resource group.

    image: the trainer image, a Docker reference. built_from: 'trainer' where `up` builds it from the trainer that comes
    along, 'own' from the user's Dockerfile, empty where it is a published one. mount: absolute path in the container
    where checkpoints go. vm_image: URN publisher:offer:sku:version. max_price: USD an hour, -1 = up to the on-demand
    price. ssh_public_key: one OpenSSH line. arguments: handed to the trainer as they are. disk_gb: OS disk, GiB.
    env: variables of the trainer. secrets: names of such whose values are kept nowhere but on the VM. when_done: what
    becomes of the VM once training has finished: deallocate, delete or keep.
    ssh: the network that may reach port 22, '' for none. zones: of the location, the first one first; none: Azure
    chooses. other_sizes, other_locations: where recovery may make the VM where it is not to be had. fallback: '', or
    'on-demand' and after how long. max_duration: seconds since the run was made, max_cost: US dollars, after which a
    watcher saves and stops it; 0 = no limit.
    """

    run: str
    location: str
    size: str
    vm_image: str
    image: str
    mount: str
    arguments: tuple[str, ...]
    max_price: float
    eviction_policy: str
    ssh_public_key: str
    disk_gb: int
    built_from: str = ""
    ssh: str = ""
    other_sizes: tuple[str, ...] = ()
    max_duration: int = 0
    max_cost: float = 0.0
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    when_done: str = "deallocate"
    zones: tuple[str, ...] = ()
    other_locations: tuple[str, ...] = ()
    fallback: str = ""

    @property
    def on_demand_after(self) -> float | None:
        """Seconds for which Spot has to have been in vain before a VM on demand is made; None: it never is."""
        if not self.fallback:
            return None
        after = self.fallback.partition(":")[2]
        return float(seconds_of(after) or 0) if after else 0.0


@dataclass(frozen=True)
class Settings:
    """What was said, before the defaults of a cloud fill the rest; every value is already checked.

    secrets: name -> the file that has its value, '' for the caller's environment."""

    run: str
    cloud: str | None = None
    subscription: str | None = None
    location: str | None = None
    size: str | None = None
    vm_image: str | None = None
    max_price: float | None = None
    eviction_policy: str | None = None
    image: str | None = None
    repository: str | None = None
    dockerfile: str | None = None
    context: str | None = None
    variant: str | None = None
    build_args: tuple[tuple[str, str], ...] | None = None
    mount: str | None = None
    ssh_key: str | None = None
    disk_gb: int | None = None
    ssh: str | None = None
    machine: str | None = None
    other_sizes: tuple[str, ...] | None = None
    max_duration: int | None = None
    max_cost: float | None = None
    env: tuple[tuple[str, str], ...] | None = None
    secrets: tuple[tuple[str, str], ...] | None = None
    when_done: str | None = None
    zones: tuple[str, ...] | None = None
    other_locations: tuple[str, ...] | None = None
    fallback: str | None = None
    trainer_args: tuple[str, ...] | None = None


class Defaults(Protocol):
    """What the cloud in use adds where the user said nothing (`session.defaults`)."""

    @property
    def size(self) -> str: ...
    @property
    def location(self) -> str: ...
    @property
    def vm_image(self) -> str: ...
    @property
    def trainer_image(self) -> str | None: ...
    @property
    def arguments(self) -> tuple[str, ...]: ...
    @property
    def mount(self) -> str: ...
    @property
    def disk_gb(self) -> int: ...


class Unfit(Exception):
    """A value that cannot be. expected: what would do; hint: what to do about it."""

    def __init__(self, expected: str, hint: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.hint = hint


# The spec lives in tags of the resource group, at most 256 characters a value, and in userData.
MAX_SPEC_BYTES = 7 * 1024
MAX_OTHER_SIZES = 8
MAX_OTHER_LOCATIONS = 4
ZONES = ("1", "2", "3")
ON_DEMAND = "on-demand"
MAX_DURATION = 365 * 86400
# Both come to the container through an environment.
MAX_VARIABLES = 64
MAX_VARIABLE_BYTES = 4 * 1024
EVICTION_POLICIES = ("Deallocate", "Delete")
WHEN_DONE = ("deallocate", "delete", "keep")
# Set for the trainer by the guest.
OWN_VARIABLES = ("CHECKPOINT_DIR", "TFDS_DATA_DIR")
VM_IMAGES = {
    "nvidia": "nvidia:ngc_azure_17_11:ngc-base-version-25_9_1_gen2:latest",
    "ubuntu-hpc": "microsoft-dsvm:ubuntu-hpc:2204:latest",
}
CLOUDS = ("embedded", "azure")
MACHINES = ("process", "container")
SSH_CALLER = "caller"
# A larger network than this one's 16 million addresses is nobody's own.
_WIDEST_PREFIX = 8

_RUN = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
# `<run>-g<N>` names the VM of generation N.
_GENERATION_ENDING = re.compile(r"-g[0-9]+$")
_LOCATION = re.compile(r"[a-z][a-z0-9]{1,40}")
_SIZE = re.compile(r"Standard_[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*")
_SUBSCRIPTION = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_URN_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Docker's own grammar, github.com/distribution/reference: [domain/]path[:tag][@digest].
_DOMAIN = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_IMAGE = re.compile(
    rf"(?P<name>(?:{_DOMAIN}(?:\.{_DOMAIN})*(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?:@sha256:[a-f0-9]{64})?"
)
# The value of a secret stands in the environment of the VM's docker client.
_READ_BY_DOCKER = re.compile(r"PATH|HOME|LD_.*|DOCKER_.*")
_ARGUMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DURATION = re.compile(r"(?:(?P<d>[0-9]{1,4})d)?(?:(?P<h>[0-9]{1,5})h)?(?:(?P<m>[0-9]{1,6})m)?")
_UNITS = {"d": 86400, "h": 3600, "m": 60}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Unfit('text in quotes, "..."')
    if not value.strip():
        raise Unfit("text that is not empty")
    return value


def _run(value: object) -> str:
    name = _text(value)
    if len(name) > 40 or not _RUN.fullmatch(name):
        raise Unfit("1 to 40 characters: small letters, digits and '-', a letter first, no '-' at the end")
    if _GENERATION_ENDING.search(name):
        raise Unfit("a name that does not end in -g and a number (so the run's VMs are named)")
    return name


def _cloud(value: object) -> str:
    if value not in CLOUDS:
        raise Unfit('"embedded" (a rehearsal on this machine) or "azure"')
    return str(value)


def _subscription(value: object) -> str:
    if not _SUBSCRIPTION.fullmatch(_text(value)):
        raise Unfit("a subscription id, 00000000-0000-0000-0000-000000000000")
    return str(value).lower()


def _location(value: object) -> str:
    name = _text(value)
    if not _LOCATION.fullmatch(name):
        squeezed = re.sub(r"[^a-z0-9]", "", name.lower())
        hint = f'Did you mean "{squeezed}"?' if _LOCATION.fullmatch(squeezed) else ""
        raise Unfit('the name of an Azure region, as in "eastus"', hint)
    return name


def _size(value: object) -> str:
    name = _text(value)
    if not _SIZE.fullmatch(name):
        guess = f"Standard_{name}"
        hint = f'Did you mean "{guess}"?' if _SIZE.fullmatch(guess) else ""
        raise Unfit('the name of a VM size, as in "Standard_D2s_v3"', hint)
    return name


def _other_sizes(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_OTHER_SIZES:
        raise Unfit(f'a list of at most {MAX_OTHER_SIZES} VM sizes, as in ["Standard_D4s_v3"]')
    return tuple(dict.fromkeys(_size(item) for item in value))


def _zones(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or any(zone not in ZONES for zone in value):
        raise Unfit('a list of availability zones of the location, as in ["1", "2"]')
    return tuple(dict.fromkeys(value))


def _other_locations(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_OTHER_LOCATIONS:
        raise Unfit(f'a list of at most {MAX_OTHER_LOCATIONS} Azure regions, as in ["westus2"]')
    return tuple(dict.fromkeys(_location(item) for item in value))


def _fallback(value: object) -> str:
    """'' for none."""
    if value == "none":
        return ""
    kind, colon, after = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind != ON_DEMAND or (colon and not 0 < (seconds_of(after) or 0) <= MAX_DURATION):
        raise Unfit(f'"{ON_DEMAND}", "{ON_DEMAND}:2h" (once Spot has been in vain for that long), or "none"')
    return str(value)


def seconds_of(text: object) -> int | None:
    """Of a time as in '1d12h'; None for what is none."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) and text else None
    return sum(int(match[unit] or 0) * each for unit, each in _UNITS.items()) if match else None


def _max_duration(value: object) -> int:
    """Seconds; 0 for none."""
    seconds = seconds_of(value) or 0
    if value != "none" and not 0 < seconds <= MAX_DURATION:
        raise Unfit('a time as in "36h", "90m" or "1d12h", at most 365d; or "none"')
    return seconds


def _max_cost(value: object) -> float:
    if value == "none":
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < float(value) < float("inf"):
        raise Unfit('US dollars above 0, or "none"')
    return float(value)


def _vm_image(value: object) -> str:
    name = _text(value)
    parts = name.split(":")
    if name in VM_IMAGES or (len(parts) == 4 and all(_URN_PART.fullmatch(part) for part in parts)):
        return VM_IMAGES.get(name, name)
    raise Unfit('"nvidia", "ubuntu-hpc", or a URN publisher:offer:sku:version')


def _max_price(value: object) -> float:
    expected = "-1 (up to the on-demand price) or US dollars an hour above 0, with at most 5 decimals"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit(expected)
    price = float(value)
    if price != -1 and not (0 < price < float("inf") and round(price, 5) == price):
        raise Unfit(expected)
    return price


def _eviction_policy(value: object) -> str:
    if value not in EVICTION_POLICIES:
        raise Unfit('"Deallocate" (the VM keeps its disk) or "Delete" (a new VM goes on from storage)')
    return str(value)


def _image(value: object) -> str:
    name = _text(value)
    match = _IMAGE.fullmatch(name)
    if match and len(match["name"]) <= 255:
        return name
    lower = name.lower()
    hint = f'A repository has small letters: "{lower}"?' if _IMAGE.fullmatch(lower) else ""
    raise Unfit("a Docker image reference, as in registry.example.com/team/trainer:1.0", hint)


def _repository(value: object) -> str:
    name = _text(value)
    match = _IMAGE.fullmatch(name)
    if match and match["name"] == name and len(name) <= 255:
        return name
    if match:
        raise Unfit("a repository without a tag, which is the digest of what the image is built from")
    lower = name.lower()
    hint = f'A repository has small letters: "{lower}"?' if _IMAGE.fullmatch(lower) else ""
    raise Unfit("a repository to push to, as in hub-user/trainer or registry.example.com/team/trainer", hint)


def _variant(value: object) -> str:
    if value not in ("cpu", "gpu"):
        raise Unfit('"cpu" or "gpu"')
    return str(value)


def _pairs(value: object, expected: str) -> list[tuple[Any, Any]]:
    """Of a table, or of texts NAME=VALUE; the value is None where a text has no '='."""
    if isinstance(value, Mapping):
        return list(value.items())
    if not isinstance(value, list | tuple):
        raise Unfit(expected)
    return [(name, text if equals else None) for name, equals, text in (str(each).partition("=") for each in value)]


def _build_args(value: object) -> tuple[tuple[str, str], ...]:
    """A table in the file, texts NAME=VALUE on the command line."""
    expected = 'names and texts, as in build_args = { BASE_IMAGE = "debian:12" } or --build-arg BASE_IMAGE=debian:12'
    pairs = _pairs(value, expected)
    for name, text in pairs:
        if not isinstance(text, str) or not _ARGUMENT_NAME.fullmatch(name):
            raise Unfit(expected)
    return tuple(sorted(pairs))


def _variable_name(name: object) -> str:
    if not isinstance(name, str) or not _ARGUMENT_NAME.fullmatch(name) or len(name) > 200:
        raise Unfit("names of letters, digits and '_', no digit first")
    if name in OWN_VARIABLES:
        raise Unfit(f"other names than {' and '.join(OWN_VARIABLES)}", f"{name} is set by cloudtrain.")
    return name


def _env(value: object) -> tuple[tuple[str, str], ...]:
    """A table in the file, texts NAME=VALUE on the command line."""
    expected = 'names and texts, as in env = { LOG_LEVEL = "debug" } or --env LOG_LEVEL=debug'
    pairs = _pairs(value, expected)
    if len(pairs) > MAX_VARIABLES:
        raise Unfit(f"at most {MAX_VARIABLES} variables")
    for name, text in pairs:
        _variable_name(name)
        if not isinstance(text, str) or "\0" in text or not _is_unicode(text):
            raise Unfit(expected, "What is secret does not belong here: --secret NAME takes it from your environment.")
        if len(text.encode()) > MAX_VARIABLE_BYTES:
            raise Unfit(f"texts of at most {MAX_VARIABLE_BYTES} bytes")
    return tuple(sorted(dict(pairs).items()))


def _secrets(value: object) -> tuple[tuple[str, str], ...]:
    """NAME, or NAME=@FILE. What is refused is not shown: somebody may have written the value itself."""
    expected = 'a list of names, as in ["HF_TOKEN", "WANDB_API_KEY=@wandb.key"]'
    if not isinstance(value, list | tuple) or len(value) > MAX_VARIABLES:
        raise Unfit(f"{expected}, at most {MAX_VARIABLES}")
    sources: dict[str, str] = {}
    for each in value:
        name, equals, file = each.partition("=") if isinstance(each, str) else ("", "", "")
        if equals and (not file.startswith("@") or len(file) < 2):
            raise Unfit(expected, "The value itself is never written here: export it, or name a file with @.")
        if _READ_BY_DOCKER.fullmatch(_variable_name(name)):
            raise Unfit(f"{expected}, none of them PATH, HOME, LD_... or DOCKER_...", "Docker itself reads these.")
        sources[name] = file.removeprefix("@")
    return tuple(sorted(sources.items()))


def _when_done(value: object) -> str:
    if value not in WHEN_DONE:
        raise Unfit(", ".join(f'"{each}"' for each in WHEN_DONE))
    return str(value)


def _mount(value: object) -> str:
    expected = "an absolute path in the container, as in /app/Saved_Model"
    path = _text(value)
    parts = path.rstrip("/").split("/")
    if not path.startswith("/") or len(parts) < 2 or any(part in ("", ".", "..") for part in parts[1:]):
        raise Unfit(expected + ", not / itself")
    if ":" in path or _CONTROL.search(path) or len(path) > 1024:
        raise Unfit(expected + ", without ':' and control characters")
    if parts[1] == "data" and len(parts) == 2:
        raise Unfit(expected, "/data holds the data sets.")
    return "/".join(parts)


def _ssh_key(value: object) -> str:
    """The path of a public key, or the key itself; answers the key, one OpenSSH line."""
    text = _text(value)
    if text.startswith(("ssh-", "ecdsa-")):
        return public_key_line(text)
    path = Path(text).expanduser()
    try:
        with path.open("rb") as file:
            content = file.read(64 * 1024)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unfit("the path of a public key file, as in ~/.ssh/id_ed25519.pub", f"{reason}.") from error
    return public_key_line(content.decode("utf-8", "replace"), f"{text}.pub")


def _disk_gb(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 64 <= value <= 4095:
        raise Unfit("a whole number of GiB from 64 (what the VM images need) to 4095 (Azure's limit)")
    return value


def _ssh(value: object) -> str:
    """'caller', a network, or nothing for 'none'."""
    expected = (
        '"caller" (this machine\'s public address alone), an IPv4 address or network such as 203.0.113.0/24, or "none"'
    )
    text = _text(value)
    if text == "none":
        return ""
    if text == SSH_CALLER:
        return text
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise Unfit(expected) from error
    if network.version != 4:
        raise Unfit(expected, "The VM has an IPv4 address only.")
    if network.prefixlen < _WIDEST_PREFIX:
        raise Unfit(
            expected,
            f"{network} would let {'everybody' if network.prefixlen == 0 else 'far too many'} knock at the VM's port "
            f"22; the largest network that is let in is a /{_WIDEST_PREFIX}.",
        )
    return str(network)


def _machine(value: object) -> str:
    if value not in MACHINES:
        raise Unfit(f'"{MACHINES[0]}" or "{MACHINES[1]}"')
    return str(value)


def _trainer_args(value: object) -> tuple[str, ...]:
    expected = 'a list of texts, as in ["--epochs", "3"]'
    if not isinstance(value, list | tuple):
        raise Unfit(expected)
    for item in value:
        if not isinstance(item, str):
            raise Unfit(expected, f'Put quotes around it: "{item}".')
        if "\0" in item:
            raise Unfit("arguments without the NUL character")
        if not _is_unicode(item):
            raise Unfit("arguments in UTF-8")
    return tuple(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


CHECKS: Mapping[str, Callable[[object], Any]] = {
    "run": _run,
    "cloud": _cloud,
    "subscription": _subscription,
    "location": _location,
    "size": _size,
    "vm_image": _vm_image,
    "max_price": _max_price,
    "eviction_policy": _eviction_policy,
    "image": _image,
    "repository": _repository,
    "dockerfile": _text,
    "context": _text,
    "variant": _variant,
    "build_args": _build_args,
    "mount": _mount,
    "ssh_key": _ssh_key,
    "disk_gb": _disk_gb,
    "ssh": _ssh,
    "machine": _machine,
    "other_sizes": _other_sizes,
    "max_duration": _max_duration,
    "max_cost": _max_cost,
    "env": _env,
    "secrets": _secrets,
    "when_done": _when_done,
    "zones": _zones,
    "other_locations": _other_locations,
    "fallback": _fallback,
    "trainer_args": _trainer_args,
}


_HELP = "cloudtrain up --help  tells about every setting."


def check(key: str, value: object, where: str) -> Any:
    """The value of `key` in the form a `Settings` holds.

    where: how the user wrote it, `--size` or `cloudtrain.toml: size`.
    Raises InvalidSpec with the key, the value and what was expected.
    """
    try:
        return CHECKS[key](value)
    except Unfit as unfit:
        shown = "not as it should be" if key == "secrets" else _shown(value)
        raise InvalidSpec(f"{where} is {shown}; expected {unfit.expected}.", unfit.hint or _HELP) from unfit


def number(text: str) -> int | float | str:
    """What a flag's text says as a number; the text itself where it says none, for `check` to refuse."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = '"' + _CONTROL.sub("?", value.encode("utf-8", "replace").decode()) + '"'
    else:
        text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def public_key_line(content: str, sibling: str = "") -> str:
    """The one OpenSSH line in `content`, checked as Azure would: RSA of 2048 bits and more, or Ed25519.

    sibling: the file to point at when a private key was given. Raises Unfit.
    """
    expected = "an OpenSSH public key: one line that begins with ssh-rsa (2048 bits or more) or ssh-ed25519"
    if "PRIVATE KEY" in content:
        where = f": {sibling}" if sibling else ""
        raise Unfit(expected, f"That is a private key, which must stay with you. Give its public half{where}.")
    lines = [line.strip() for line in content.splitlines() if line.strip() and not line.startswith("#")]
    fields = lines[0].split() if len(lines) == 1 else []
    if len(fields) < 2 or fields[0] not in ("ssh-rsa", "ssh-ed25519") or _CONTROL.search(lines[0]):
        raise Unfit(expected)
    bits = _key_bits(fields[0], fields[1])
    if bits is None:
        raise Unfit(expected, "The key's data is damaged or incomplete.")
    if fields[0] == "ssh-rsa" and bits < 2048:
        raise Unfit(expected, f"This one has {bits} bits.")
    return lines[0]


def _key_bits(kind: str, data: str) -> int | None:
    """Bits of the key, None where the data is no key of that kind. Wire format: RFC 4253, section 6.6."""
    try:
        fields = _wire_strings(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError, struct.error):
        return None
    if not fields or fields[0] != kind.encode():
        return None
    if kind == "ssh-ed25519":
        return 256 if len(fields) == 2 and len(fields[1]) == 32 else None
    return int.from_bytes(fields[2], "big").bit_length() if len(fields) == 3 else None


def _wire_strings(blob: bytes) -> list[bytes]:
    fields = []
    while blob:
        (length,) = struct.unpack_from(">I", blob)
        if len(blob) < 4 + length:
            raise ValueError("a field ends early")
        fields.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    return fields


def merge_arguments(defaults: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """`given`, after those `--flag value` pairs of `defaults` that it leaves unsaid."""
    said = {argument.split("=", 1)[0] for argument in given if argument.startswith("--")}
    kept: list[str] = []
    keep = True
    for argument in defaults:
        if argument.startswith("--"):
            keep = argument.split("=", 1)[0] not in said
        if keep:
            kept.append(argument)
    return (*kept, *given)


def resolve(
    settings: Settings,
    defaults: Defaults,
    public_key: str,
    existing: RunSpec | None = None,
    built: tuple[str, str] | None = None,
) -> RunSpec:
    """The spec: what was said, completed by what the run already is, else by the cloud's defaults.

    public_key: the OpenSSH line that the VM lets in. built: the image that `up` builds, and what from. Raises
    InvalidSpec where a value is needed and nobody gave it, and where the whole is larger than Azure's tags can keep.
    """
    spec = complete(settings, defaults, public_key, existing, built)
    check_image_named(spec)
    _check_size(spec)
    return spec


def complete(
    settings: Settings,
    defaults: Defaults,
    public_key: str,
    existing: RunSpec | None = None,
    built: tuple[str, str] | None = None,
) -> RunSpec:
    """As `resolve`, but what is missing stays empty."""
    base = existing or _from_defaults(settings.run, defaults)
    said = {key: getattr(settings, key) for key in _KEPT if getattr(settings, key) is not None}
    if built is not None:
        said |= {"image": built[0], "built_from": built[1]}
    elif settings.image is not None:
        said["built_from"] = ""
    if settings.secrets is not None:
        said["secrets"] = tuple(name for name, _ in settings.secrets)
    spec = msgspec.structs.replace(base, **said, ssh_public_key=settings.ssh_key or public_key)
    return msgspec.structs.replace(spec, arguments=_arguments(settings, defaults, spec, existing))


def _arguments(settings: Settings, defaults: Defaults, spec: RunSpec, existing: RunSpec | None) -> tuple[str, ...]:
    """The cloud's arguments are for the trainer that comes along: another program would not know them."""
    comes_along = spec.built_from == "trainer" or spec.image == defaults.trainer_image
    ours = defaults.arguments if comes_along else ()
    if settings.trainer_args is not None:
        return merge_arguments(ours, settings.trainer_args)
    return existing.arguments if existing else ours


def check_image_named(spec: RunSpec) -> None:
    """Raises InvalidSpec."""
    if not spec.image:
        raise InvalidSpec(
            "No trainer image was named, and this cloud has none of its own.",
            "Have one built and pushed: --repository HUB-USER/NAME; or name a published one: --image REFERENCE.",
        )


# Settings that a spec keeps under the same name.
_KEPT = (
    "location",
    "size",
    "vm_image",
    "image",
    "mount",
    "max_price",
    "eviction_policy",
    "disk_gb",
    "ssh",
    "other_sizes",
    "max_duration",
    "max_cost",
    "env",
    "when_done",
    "zones",
    "other_locations",
    "fallback",
)


def _from_defaults(run: str, defaults: Defaults) -> RunSpec:
    return RunSpec(
        run=run,
        location=defaults.location,
        size=defaults.size,
        vm_image=defaults.vm_image,
        image=defaults.trainer_image or "",
        mount=defaults.mount,
        arguments=defaults.arguments,
        max_price=-1.0,
        eviction_policy="Deallocate",
        ssh_public_key="",
        disk_gb=defaults.disk_gb,
    )


def _check_size(spec: RunSpec) -> None:
    size = len(msgspec.json.encode(spec))
    if size > MAX_SPEC_BYTES:
        raise InvalidSpec(
            f"All settings together are {size} bytes; expected at most {MAX_SPEC_BYTES} (Azure's tags).",
            "Shorten the trainer's arguments; long lists belong in a file of the trainer image.",
        )
