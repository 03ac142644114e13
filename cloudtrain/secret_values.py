"""The values of a run's secret variables: read where they are at hand, kept nowhere on this machine."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloudtrain.errors import InvalidSpec

# They reach the VM in one environment variable, of which Linux takes 128 KiB.
MAX_BYTES = 32 * 1024


@dataclass(frozen=True)
class SecretValues:
    """missing: names for which there is no value here."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    missing: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.missing


def read(names: Iterable[str], files: Mapping[str, str] | None = None) -> SecretValues:
    """files: name -> file that has the value; every other is looked for in this process's environment.

    Raises InvalidSpec: a file that cannot be read, a value that cannot be a variable, all of them too long."""
    files, values, missing = files or {}, dict[str, str](), []
    for name in names:
        value = _in_file(name, files[name]) if files.get(name) else os.environ.get(name, "")
        if value:
            values[name] = _checked(name, value)
        else:
            missing.append(name)
    if sum(len(value.encode()) for value in values.values()) > MAX_BYTES:
        raise InvalidSpec(f"The values of all secrets together are longer than {MAX_BYTES} bytes.")
    return SecretValues(values, tuple(missing))


def refuse_missing(found: SecretValues, run: str) -> None:
    """Raises InvalidSpec."""
    if found.missing:
        names = ", ".join(found.missing)
        raise InvalidSpec(
            f"Run '{run}' has secrets whose values are not at hand: {names}.",
            f"Set them in your environment, or name a file: cloudtrain up {run} --secret {found.missing[0]}=@FILE",
            code="SecretMissing",
        )


def _in_file(name: str, file: str) -> str:
    try:
        content = Path(file).expanduser().read_bytes()[: MAX_BYTES + 1]
        return content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise InvalidSpec(f"The file of the secret {name} cannot be read: {file}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise InvalidSpec(f"The file of the secret {name} is no text in UTF-8: {file}.") from None


def _checked(name: str, value: str) -> str:
    try:
        if "\0" in value:
            raise ValueError
        value.encode()
    except ValueError:
        raise InvalidSpec(f"The value of the secret {name} cannot be a variable: it is no text in UTF-8.") from None
    return value
