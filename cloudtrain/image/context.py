"""The build context: which files go to the engine, as one archive that is the same wherever the files are."""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cloudtrain.errors import InvalidSpec

# The Dockerfile need not lie in the context; under this name it comes along.
DOCKERFILE = ".cloudtrain.dockerfile"


@dataclass(frozen=True)
class Context:
    """archive: the tar that is sent. digest: of everything that decides what is built."""

    archive: IO[bytes]
    digest: str


def read(root: Path, dockerfile: Path, ignore: Path, build_args: Mapping[str, str]) -> Context:
    """Pack what `ignore` (a .dockerignore, which need not exist) leaves of `root`. Raises InvalidSpec."""
    try:
        recipe = dockerfile.read_bytes()
        archive = tempfile.TemporaryFile()  # noqa: SIM115  # the caller's, until it is sent
        with tarfile.open(mode="w", fileobj=archive, format=tarfile.PAX_FORMAT) as tar:
            _add(tar, tarfile.TarInfo(DOCKERFILE), io.BytesIO(recipe), len(recipe))
            for name in sorted(_names(root, ignore)):
                _add_path(tar, root, name)
    except OSError as error:
        where = error.filename or root
        raise InvalidSpec(
            f"The trainer image cannot be built: {where}: {error.strerror or error}.",
            "Check --dockerfile and --context; .dockerignore leaves files out.",
        ) from error
    archive.seek(0)
    found = hashlib.file_digest(archive, "sha256")
    archive.seek(0)
    found.update(json.dumps(sorted(build_args.items())).encode())
    return Context(archive, found.hexdigest())


def _names(root: Path, ignore: Path) -> set[str]:
    from docker.utils import exclude_paths

    if not root.is_dir():
        raise NotADirectoryError(20, "not a directory", str(root))
    lines = ignore.read_text("utf-8-sig").splitlines() if ignore.is_file() else []
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    # .dockerignore itself decides nothing that the other files do not show.
    names: set[str] = exclude_paths(str(root), patterns, dockerfile=DOCKERFILE)
    return names - {".dockerignore"}


def _add_path(tar: tarfile.TarFile, root: Path, name: str) -> None:
    path = root / name
    info = tar.gettarinfo(str(path), arcname=name)
    if info is None:  # a socket, which an archive cannot hold
        return
    if info.islnk():  # a second hard link: as a file of its own, for its first name may come and go
        info.type, info.linkname = tarfile.REGTYPE, ""
    if not info.isreg():
        _add(tar, info, None, 0)
        return
    with path.open("rb") as file:
        _add(tar, info, file, path.stat().st_size)


def _add(tar: tarfile.TarFile, info: tarfile.TarInfo, content: IO[bytes] | None, size: int) -> None:
    """Content, kind and mode count; owner and time say where the files were copied last, and nothing else."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    info.size = size
    tar.addfile(info, content)
