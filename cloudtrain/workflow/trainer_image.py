"""The run's trainer image: whether `up` builds one, and building it beside the making of network and VM."""

import threading
from collections.abc import Callable
from typing import TypeVar

from cloudtrain import image
from cloudtrain.azure.session import Session
from cloudtrain.errors import InvalidSpec
from cloudtrain.image.engine import Cancelled
from cloudtrain.image.plan import Ensured
from cloudtrain.lifecycle.training import has_gpu
from cloudtrain.progress import Progress
from cloudtrain.spec import RunSpec, Settings
from cloudtrain.together import together

Made = TypeVar("Made")
NOTHING_DONE = Ensured(built=False, pushed=False)
BUILDING = ("repository", "dockerfile", "context", "variant", "build_args")


def planned(session: Session, progress: Progress, settings: Settings, existing: RunSpec | None) -> image.Build | None:
    """What `up` has to build: nothing where a published image is named, or where the run has one and nothing is said of
    building. Reads the build context. Raises InvalidSpec."""
    said = any(getattr(settings, name) is not None for name in BUILDING)
    if not session.capabilities.published_images:
        if said:
            progress.note(
                "Nothing is built or pushed: this rehearsal trains with the trainer of this Python environment."
            )
        return None
    rehearsed = session.defaults.repository
    if existing is not None and not said and not (rehearsed and existing.built_from == "trainer"):
        return None
    if existing is not None:
        _refuse_other_dockerfile(settings, existing)
    repository = rehearsed or settings.repository
    gpu = has_gpu(settings.size or (existing.size if existing else session.defaults.size))
    if repository is None or settings.image is not None:
        return image.plan(settings, repository=repository, gpu=gpu)  # nothing to read; it may have to refuse
    with progress.step("reading the build context"):
        return image.plan(settings, repository=repository, gpu=gpu)


def _refuse_other_dockerfile(settings: Settings, existing: RunSpec) -> None:
    """The Dockerfile is not kept with the run: without it something else would be built than before."""
    if existing.built_from != "own" or any((settings.dockerfile, settings.context, settings.image, settings.variant)):
        return
    raise InvalidSpec(
        f"Run '{existing.run}' trains an image of your own Dockerfile, which is not named now.",
        "Name it again: --dockerfile FILE  or --context DIRECTORY.  --variant cpu|gpu  builds the trainer that comes "
        "along instead.",
    )


def built(build: image.Build | None) -> tuple[str, str] | None:
    """What the spec keeps of it: the image, and what it is built from."""
    return (build.image, "own" if build.own else "trainer") if build else None


def refuse_unpushed(session: Session, spec: RunSpec) -> None:
    """An `up` that was killed while it built leaves a run whose image is nowhere. Raises ImageError."""
    if not spec.built_from or not session.capabilities.published_images:
        return
    try:
        image.look(spec.image, built=False)
    except image.ImageError as error:
        if error.code != "NoSuchImage":
            raise
        repository = spec.image.rpartition(":")[0]
        raise image.ImageError(
            error.code,
            f"{spec.image} was never pushed: the up that was to build it did not come to its end.",
            f"cloudtrain up {spec.run} --repository {repository}"
            + ("" if spec.built_from == "trainer" else " --context DIRECTORY")
            + "  builds it, with the other settings as they were.",
        ) from error


def beside(make: Callable[[], Made], build: image.Build | None, progress: Progress) -> tuple[Made, Ensured]:
    """Do `make` and the build side by side. Where one fails the other is ended, or waited for; the first error of the
    two is raised."""
    if build is None:
        return make(), NOTHING_DONE
    failed = threading.Event()

    def made() -> Made:
        try:
            return make()
        except BaseException:
            failed.set()
            raise

    def built() -> Ensured:
        try:
            return build.ensure(progress, failed)
        except Cancelled:
            return NOTHING_DONE

    results = together(made, built)
    return results[0], results[1]
