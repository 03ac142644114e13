"""The image that nodes are made from: built once from Debian packages, and kept as a file beside the emulator.

Its tag is the digest of its recipe: another recipe, another image. The engine may forget it at any time (`down` of the
last run removes it): it is loaded from the file again, in seconds.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cloudtrain.emulator.machines import MachineError
from cloudtrain.emulator.machines.engine import Engine, errors

_PACKAGE = Path(__file__).resolve().parents[3]
_MACHINES = "cloudtrain/emulator/machines"
_FILES = (
    "cloudtrain/__init__.py",
    "cloudtrain/emulator/__init__.py",
    *(
        f"{_MACHINES}/{name}.py"
        for name in ("__init__", "accounts", "agent", "channel", "directory", "imds", "namespaces", "process_table")
    ),
    *(f"{_MACHINES}/node/{name}" for name in ("__init__.py", "init.py", "root.py", "services.py", "power.sh")),
)
_DOCKERFILE = f"{_MACHINES}/node/Dockerfile"
REPOSITORY = "cloudtrain-node"
DEBIAN = "bookworm"
_LABEL = "cloudtrain.node"


class NodeImage:
    """root: the emulator's directory. base: an image to build on; empty: one is made with debootstrap.

    tell: told what is being made and how long that takes."""

    def __init__(self, root: Path, *, engine: Engine, base: str, tell: Callable[[str], None]) -> None:
        self._root = root.absolute()
        self._engine = engine
        self._base = base
        self.tell = tell

    @property
    def reference(self) -> str:
        recipe = hashlib.sha256(self._base.encode())
        for name in (_DOCKERFILE, *_FILES):
            recipe.update(name.encode() + b"\0" + (_PACKAGE / name).read_bytes() + b"\0")
        return f"{REPOSITORY}:{recipe.hexdigest()[:12]}"

    @property
    def _file(self) -> Path:
        return self._root / f"{self.reference.replace(':', '-')}.tar"

    def ensure(self) -> str:
        """The image's name, in the engine. Raises MachineError."""
        reference = self.reference
        if self._engine.has_image(reference):
            return reference
        with self._locked():
            if self._engine.has_image(reference):
                return reference
            if self._file.exists():
                self.tell("loading the node image (about 10 s)")
                self._load()
            else:
                self._build(reference)
                self._save(reference)
        return reference

    def _build(self, reference: str) -> None:
        base = self._base or self._debian()
        self.tell("building the node image from Debian packages, once (1 to 3 minutes)")
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            _add(tar, "Dockerfile", _PACKAGE / _DOCKERFILE)
            for name in _FILES:
                _add(tar, f"files/{name}", _PACKAGE / name)
        context.seek(0)
        said = ""
        with errors():
            events = self._engine.api.build(
                fileobj=context,
                custom_context=True,
                tag=reference,
                rm=True,
                forcerm=True,
                decode=True,
                buildargs={"BASE_IMAGE": base},
                labels={_LABEL: "image"},
            )
            for event in events:  # what went wrong comes as an event, not as an exception
                said = (said + event.get("stream", ""))[-2000:]
                if "error" in event:
                    raise MachineError(_FAILED.format(base=base, why=event["error"].strip(), said=said.strip()[-500:]))

    def _debian(self) -> str:
        """A minimal Debian, made without pulling anything."""
        name = f"{REPOSITORY}-base:{DEBIAN}"
        if self._engine.has_image(name):
            return name
        if shutil.which("debootstrap") is None or os.getuid() != 0:
            raise MachineError(
                "The node image needs a base: debootstrap (as root) makes one, or an image of Debian or Ubuntu will "
                "do. cloudtrain emulator node --base debian:bookworm  builds on that one; apt install debootstrap"
            )
        self.tell("making a minimal Debian with debootstrap, once (1 to 2 minutes)")
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".debian-") as directory:
            _run("debootstrap", "--variant=minbase", "--include=ca-certificates", DEBIAN, directory)
            with subprocess.Popen(["tar", "-C", directory, "-c", "."], stdout=subprocess.PIPE) as tar, errors():
                self._engine.api.import_image_from_stream(tar.stdout, repository=REPOSITORY + "-base", tag=DEBIAN)
        return name

    def _save(self, reference: str) -> None:
        temporary = self._file.with_suffix(".new")
        with errors(), temporary.open("wb") as file:
            for chunk in self._engine.api.get_image(reference):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        for old in self._root.glob(f"{REPOSITORY}-*.tar"):
            old.unlink()
        temporary.replace(self._file)

    def _load(self) -> None:
        with errors(), self._file.open("rb") as file:
            for event in self._engine.api.load_image(file):
                if "error" in event:
                    self._file.unlink()
                    raise MachineError(f"The node image's file was damaged, and is removed: {event['error']}")

    def remove(self) -> None:
        """From the engine, with what was made for it. The file stays, for the next rehearsal."""
        for name in (self.reference, f"{REPOSITORY}-base:{DEBIAN}"):
            self._engine.remove_image(name)
        for name in self._engine.unnamed_images(_LABEL):  # two emulators built it at the same time
            self._engine.remove_image(name)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._root / "node-image.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


_FAILED = "The node image could not be built on {base}: {why}. It said last: {said}"


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    """Without owner and time: the same files make the same layers."""
    entry = tarfile.TarInfo(name)
    content = path.read_bytes()
    entry.size, entry.mode = len(content), 0o755 if path.suffix == ".sh" else 0o644
    tar.addfile(entry, io.BytesIO(content))


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise MachineError(f"{command[0]} failed: {done.stdout.decode(errors='replace').strip()[-500:]}")
