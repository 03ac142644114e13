"""Files of directories in which others write meanwhile."""

import contextlib
import os
from pathlib import Path


def paths(root: Path) -> list[Path]:
    """All files and directories below. Not rglob: it fails where a directory vanishes while it looks."""
    return [Path(place, name) for place, folders, files in os.walk(root) for name in (*folders, *files)]


def contents(root: Path) -> dict[Path, bytes]:
    """Of all files that are still there when they are read."""
    found = {}
    for path in paths(root):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                found[path] = path.read_bytes()
    return found
