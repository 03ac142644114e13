"""What `up` builds: decided before anything is made, because the tag is part of the run's spec."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloudtrain import __version__
from cloudtrain.errors import InvalidSpec
from cloudtrain.image import context as contexts
from cloudtrain.image import engine
from cloudtrain.image.context import Context
from cloudtrain.progress import Progress

VARIANTS: Mapping[str, str] = {"cpu": "tensorflow-cpu", "gpu": "tensorflow[and-cuda]"}
TAG_LENGTH = 16  # hexadecimal digits of the digest


class Wanted(Protocol):
    """What of the settings decides how the image is made (`spec.Settings`)."""

    @property
    def image(self) -> str | None: ...
    @property
    def repository(self) -> str | None: ...
    @property
    def dockerfile(self) -> str | None: ...
    @property
    def context(self) -> str | None: ...
    @property
    def variant(self) -> str | None: ...
    @property
    def build_args(self) -> tuple[tuple[str, str], ...] | None: ...


@dataclass(frozen=True)
class Ensured:
    """What was done so that the registry has the image."""

    built: bool
    pushed: bool


@dataclass(frozen=True)
class Build:
    """An image that is to be in the registry. image: repository:tag. dockerfile: as the user calls it. own: it is the
    user's own, not the trainer that comes along."""

    image: str
    dockerfile: str
    own: bool
    context: Context
    build_args: Mapping[str, str]

    def ensure(self, progress: Progress, cancelled: threading.Event) -> Ensured:
        """Build and push what the registry lacks. Raises ImageError; engine.Cancelled once `cancelled` is set."""
        with engine.connected() as client:
            with progress.step("looking for the trainer image"):
                if engine.is_published_or_new(client, self.image):
                    return Ensured(built=False, pushed=False)
                here = engine.is_here(client, self.image)
            if not here:
                with progress.step("building the trainer image", usually="2 to 10 minutes") as step:
                    engine.build(
                        client,
                        self.image,
                        self.context,
                        self.build_args,
                        dockerfile=self.dockerfile,
                        step=step,
                        cancelled=cancelled,
                    )
            with progress.step("pushing the trainer image", usually="1 to 10 minutes") as step:
                engine.push(client, self.image, step=step, cancelled=cancelled)
        return Ensured(built=not here, pushed=True)


def plan(wanted: Wanted, *, repository: str | None, gpu: bool) -> Build | None:
    """The image to build, or None where a published one is used or nothing is said. repository: where it goes.

    Reads the whole build context. Raises InvalidSpec."""
    if wanted.image is not None or repository is None:
        _refuse_idle(wanted)
        return None
    own = wanted.dockerfile is not None or wanted.context is not None
    if own and wanted.variant is not None:
        raise InvalidSpec(
            f'variant is "{wanted.variant}", and belongs to the Dockerfile that comes along; you named your own.',
            "Leave it out; --build-arg NAME=VALUE  sets an ARG of your Dockerfile.",
        )
    args = dict(wanted.build_args or ())
    if own:
        root, dockerfile = _own_files(wanted)
        ignore = root / ".dockerignore"
    else:
        args = {"TENSORFLOW": VARIANTS[wanted.variant or ("gpu" if gpu else "cpu")], "VERSION": __version__, **args}
        root, dockerfile, ignore = _files_that_come_along()
    context = contexts.read(root, dockerfile, ignore, args)
    name = str(dockerfile) if own else "the trainer's Dockerfile"
    return Build(f"{repository}:{context.digest[:TAG_LENGTH]}", name, own, context, args)


def _refuse_idle(wanted: Wanted) -> None:
    """Settings of a build where nothing is built."""
    idle = [name for name in ("dockerfile", "context", "variant", "build_args") if getattr(wanted, name)]
    if not idle:
        return
    if wanted.image is not None:
        raise InvalidSpec(
            f'image is "{wanted.image}", which is used as it is, so {idle[0]} has no use.',
            "Leave image out to build one (--repository NAME says where it goes), or the others.",
        )
    raise InvalidSpec(
        f"{idle[0]} says how to build the trainer image, and nothing says where it goes.",
        "Name its repository: --repository HUB-USER/NAME, or repository = ... in cloudtrain.toml.",
    )


def _own_files(wanted: Wanted) -> tuple[Path, Path]:
    """Context and Dockerfile: each found from the other where only one is said, as docker build does."""
    if wanted.context is not None:
        root = Path(wanted.context).expanduser()
        return root, Path(wanted.dockerfile).expanduser() if wanted.dockerfile else root / "Dockerfile"
    dockerfile = Path(wanted.dockerfile or "Dockerfile").expanduser()
    return dockerfile.parent, dockerfile


def _files_that_come_along() -> tuple[Path, Path, Path]:
    """The directory of the package `trainer`, the Dockerfile and its .dockerignore: of a checkout, or as installed."""
    above = Path(__file__).parents[2]
    packaged = Path(__file__).parent / "packaged"
    place = packaged if packaged.is_dir() else above
    return above, place / "Dockerfile", place / ".dockerignore"
