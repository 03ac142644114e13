"""The directories of storage accounts' blobs. One is made with its account and with nothing else, so that no request
brings it back while the account is being deleted: where it is missing, there is no account any more."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from cloudtrain.emulator import ids
from cloudtrain.emulator.blobs.content import flush_directory
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.store import Resource, UnusableStore

_GONE = ".gone"


def make(azure: Azure, account: Resource) -> None:
    """Inside the transaction by which the account is there: whoever deletes it comes before or after. Raises
    StoreError."""
    directory = azure.blobs / account.private["directory"]
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flush_directory(directory.parent)
    except OSError as error:
        raise UnusableStore(directory, str(error)) from None


def erase(azure: Azure, accounts: Iterable[Resource]) -> None:
    """What is left by somebody who was killed in here, `sweep` removes. Raises StoreError."""
    # A power cut must not bring an account back whose directory is gone: what says so is on disk first.
    azure.store.flush()
    for account in accounts:
        erase_directory(azure.blobs / account.private["directory"])


def sweep(azure: Azure) -> None:
    """Remove the files of accounts that are no more: deleted a moment ago, or by somebody who was killed. Raises
    StoreError."""
    if not azure.blobs.is_dir():
        return
    there = {path.name for path in azure.blobs.iterdir()}  # before the look into the records: a new one has its record
    with azure.store.read() as records:
        known = {account.private["directory"] for account in records.resources(ids.STORAGE_ACCOUNT)}
    if there - known:
        azure.store.flush()  # as above
    for name in {name.removesuffix(_GONE) for name in there - known}:
        erase_directory(azure.blobs / name)


def erase_directory(directory: Path) -> None:
    """It goes all at once, by another name: a request that is under way finds all of it or nothing, and puts nothing
    into it while it is being removed."""
    gone = directory.with_name(directory.name + _GONE)
    try:
        with contextlib.suppress(FileNotFoundError):
            directory.rename(gone)
    except OSError as error:
        raise UnusableStore(directory, str(error)) from None
    shutil.rmtree(gone, ignore_errors=True)
