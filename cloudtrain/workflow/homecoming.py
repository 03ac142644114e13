"""A person's directory that a run's files come home to: only what an earlier pull of the same run wrote is replaced,
and nothing is ever deleted. What was written there is noted in it, so that this holds from any machine, after any end.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cloudtrain.azure import blobs
from cloudtrain.azure.blobs import BlobInfo
from cloudtrain.azure.group import Group
from cloudtrain.errors import CloudtrainError
from cloudtrain.files import write_whole
from cloudtrain.lifecycle.context import Context

NOTE = ".cloudtrain-pull.json"
_LOOK_SECONDS = 0.5


class Note(msgspec.Struct, frozen=True, omit_defaults=True):
    """files: path -> MD5 (hex) of every content that a pull wrote there, or was about to write. created: of the run,
    ISO 8601; another run of the same name was created at another time."""

    run: str
    cloud: str
    created: str
    files: dict[str, list[str]] = {}
    version: int = 1


@dataclass
class Home:
    """An open, locked directory. fetched: the paths that came since it was opened."""

    directory: Path
    note: Note
    fetched: set[str] = field(default_factory=set)
    _digests: dict[tuple[str, int, int], bytes] = field(default_factory=dict)

    def expect(self, files: Mapping[str, BlobInfo]) -> None:
        """Note what is about to be written, before: a pull that is killed then knows it as its own.

        Raises CloudtrainError for a file that no pull of this run wrote."""
        foreign = self.foreign(files)
        if foreign:
            raise _would_overwrite(self.directory, foreign)
        for path, blob in files.items():
            known = self.note.files.setdefault(path, [])
            if _hex(blob) not in known:
                known.append(_hex(blob))
        _write_note(self.directory, self.note)

    def have(self, path: str, blob: BlobInfo) -> None:
        self.fetched.add(path)
        self.note.files[path] = [_hex(blob)]

    def missing(self, files: Mapping[str, BlobInfo]) -> dict[str, BlobInfo]:
        """What does not lie there yet as it is in storage."""
        return {path: blob for path, blob in files.items() if not blob.md5 or self._digest(path) != blob.md5}

    def foreign(self, files: Mapping[str, BlobInfo]) -> list[str]:
        """Paths where something else lies than this run's files."""
        return [path for path, blob in files.items() if not self._may_write(path, blob)]

    def _may_write(self, path: str, blob: BlobInfo) -> bool:
        target = self.directory / path
        if any((self.directory / parent).is_file() for parent in Path(path).parents):
            return False
        if not os.path.lexists(target):
            return True
        if not target.is_file():
            return False
        digest, known = self._digest(path), self.note.files.get(path, ())
        # '' stands for a content whose checksum nobody told.
        return digest == blob.md5 or digest.hex() in known or "" in known

    def _digest(self, path: str) -> bytes:
        """Of the file that lies there; b'' for none. Read once as long as it is the same file."""
        try:
            told = (self.directory / path).stat()
        except OSError:
            return b""
        key = (path, told.st_ino, told.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = blobs.md5(self.directory / path)
        return self._digests[key]


def _hex(blob: BlobInfo) -> str:
    return blob.md5.hex()


@contextmanager
def opened(ctx: Context, group: Group, candidates: list[Path], files: Mapping[str, BlobInfo]) -> Iterator[Home]:
    """The first of the directories where nothing else is in the way of these files. Raises CloudtrainError."""
    why = CloudtrainError("WouldOverwrite", "")
    for directory in candidates:
        if os.path.lexists(directory) and not directory.is_dir():
            why = _cannot_write(directory, "it is no directory")
            continue
        with _telling_of(directory), _locked(ctx, directory):
            note = _read_note(directory, Note(group.run, ctx.session.cloud, group.created))
            if isinstance(note, CloudtrainError):
                why = note
                continue
            home = Home(directory, note)
            foreign = home.foreign(files)
            if foreign:
                why = _would_overwrite(directory, foreign)
                continue
            try:
                yield home
            finally:
                _write_note(directory, home.note)
            return
    raise why


@contextmanager
def _telling_of(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot_write(directory, error.strerror or str(error)) from error


def _cannot_write(directory: Path, why: str) -> CloudtrainError:
    return CloudtrainError(
        "CannotWrite", f"Files cannot be written to {directory}: {why}.", "--to DIRECTORY  names another place."
    )


@contextmanager
def _locked(ctx: Context, directory: Path) -> Iterator[None]:
    """One pull at a time. The lock ends with the process, however that ends."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _lock(descriptor):
            with ctx.progress.step(f"waiting for another pull into {directory}") as step:
                while not _lock(descriptor):
                    step.update("it is not done yet")
                    ctx.clock.sleep(_LOOK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_note(directory: Path, ours: Note) -> Note | CloudtrainError:
    """What was written there, `ours` where nothing was; the error for a directory of another run."""
    try:
        note = msgspec.json.decode((directory / NOTE).read_bytes(), type=Note)
    except FileNotFoundError:
        return ours
    except (msgspec.DecodeError, msgspec.ValidationError):
        return ours  # then every file there is taken for somebody else's
    if (note.run, note.cloud, note.created) == (ours.run, ours.cloud, ours.created):
        return note
    return CloudtrainError(
        "OfAnotherRun",
        f"{directory} holds what was pulled of the run '{note.run}' that was created at {note.created}.",
        "--to DIRECTORY  names another place.",
    )


def _would_overwrite(directory: Path, paths: list[str]) -> CloudtrainError:
    shown = ", ".join(sorted(paths)[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
    return CloudtrainError(
        "WouldOverwrite",
        f"In {directory} lie files that no pull of this run wrote, or that were changed since: {shown}.",
        "Move them out of the way, or name another place with  --to DIRECTORY.",
    )


def _write_note(directory: Path, note: Note) -> None:
    write_whole(directory / NOTE, msgspec.json.format(msgspec.json.encode(note), indent=1) + b"\n")
