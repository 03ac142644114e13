"""Small images, and what a test asks of `cloudtrain.image`."""

import base64
import json
import threading
from pathlib import Path
from typing import Any

from cloudtrain.config import settings_for_up
from cloudtrain.image import Build, Ensured, plan


class Silent:
    """A Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.updates: list[str] = []

    def step(self, title: str, usually: str = "") -> "Silent":
        self.steps.append(title)
        return self

    def note(self, text: str) -> None:
        raise AssertionError(text)

    def update(self, text: str) -> None:
        self.updates.append(text)

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def planned(directory: Path, **settings: Any) -> Build:
    """What `up` would build with these settings in cloudtrain.toml, in that directory."""
    wanted = settings_for_up({"run": "horses", **settings}, {}, directory)
    found = plan(wanted, repository=wanted.repository, gpu=False)
    assert found is not None
    return found


def ensured(build: Build, progress: Silent | None = None) -> Ensured:
    return build.ensure(progress or Silent(), threading.Event())


def dockerfile(directory: Path, *lines: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "Dockerfile").write_text("\n".join(lines) + "\n")
    return directory


def login(folder: Path, address: str, user: str, password: str) -> None:
    """What docker login leaves where there is no credential helper."""
    folder.mkdir(exist_ok=True)
    entry = {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
    (folder / "config.json").write_text(json.dumps({"auths": {address: entry}}))
