"""docker-py, with its silent failures made errors: pushes and builds that fail raise nothing, they end with an event
that says so."""

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cloudtrain.image import errors
from cloudtrain.image.context import DOCKERFILE, Context
from cloudtrain.image.errors import ImageError
from cloudtrain.image.layers import Layers
from cloudtrain.image.reference import parse
from cloudtrain.progress import Step

# The longest silence in a push: a large layer is put together by a slow registry.
TIMEOUT_SECONDS = 600
# Azure's VM sizes are x86-64 unless their name says otherwise; an engine on an ARM machine would build for itself.
PLATFORM = "linux/amd64"
# The classic builder paints what a command says on its standard error.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Cancelled(Exception):
    """Nobody needs the image any more: what was made beside it failed."""


@contextmanager
def connected() -> Iterator[Any]:
    """A client of the engine that the docker command line uses too. Raises ImageError where none answers."""
    client = _connect()
    try:
        yield client
    finally:
        client.close()


def _connect() -> Any:
    import docker
    from docker.context import ContextAPI
    from docker.errors import DockerException

    try:
        if os.environ.get("DOCKER_HOST"):
            return docker.from_env(timeout=TIMEOUT_SECONDS)
        context = ContextAPI.get_current_context()
        if context is None:  # named in docker's config, and gone
            return docker.from_env(timeout=TIMEOUT_SECONDS)
        return docker.DockerClient(base_url=context.Host, tls=context.TLSConfig or False, timeout=TIMEOUT_SECONDS)
    except DockerException as error:
        raise errors.engine_away(error) from error


@contextmanager
def _talking() -> Iterator[None]:
    """The engine can go away at any time, and a credential helper can fail: errors of docker-py that are neither the
    registry's nor the build's."""
    import requests
    from docker.errors import APIError, DockerException

    try:
        yield
    except requests.RequestException as error:
        raise errors.engine_away(error) from error
    except APIError:
        raise
    except DockerException as error:
        raise ImageError(
            "DockerFailed", f"Docker said: {error}", "docker info  and  docker login  show whether it works by itself."
        ) from error


def is_published(client: Any, image: str, *, anonymous: bool = False) -> bool:
    """Whether the registry has it, as the engine sees it. anonymous: without the login. Raises ImageError."""
    from docker.errors import APIError, NotFound

    with _talking():
        try:
            client.api.inspect_distribution(image, auth_config={} if anonymous else None)
        except NotFound:
            return False
        except APIError as error:
            raise errors.of_registry(str(error), parse(image), "looking for") from error
    return True


def is_published_or_new(client: Any, image: str) -> bool:
    """As is_published, for what is to be pushed: Docker Hub denies a repository that does not exist yet, and the push
    makes it."""
    try:
        return is_published(client, image)
    except ImageError as error:
        if error.code == "RegistryDenied":
            return False
        raise


def is_here(client: Any, image: str) -> bool:
    from docker.errors import ImageNotFound

    with _talking():
        try:
            client.api.inspect_image(image)
        except ImageNotFound:
            return False
    return True


def build(
    client: Any,
    image: str,
    context: Context,
    build_args: Mapping[str, str],
    *,
    dockerfile: str,
    step: Step,
    cancelled: threading.Event,
) -> None:
    """dockerfile: what the user calls it. Raises ImageError, Cancelled."""
    from docker.errors import APIError

    log: list[str] = []
    layers = Layers("pulling the base image")
    with _talking():
        try:
            events = client.api.build(
                fileobj=context.archive,
                custom_context=True,
                dockerfile=DOCKERFILE,
                tag=image,
                buildargs=dict(build_args),
                platform=PLATFORM,
                rm=True,
                forcerm=True,
                use_config_proxy=True,
                decode=True,
            )
            for event in _until(cancelled, events):
                if "error" in event:
                    raise errors.of_build(str(event["error"]).replace(DOCKERFILE, dockerfile), log, dockerfile)
                _remember(log, str(event.get("stream", "")))
                step.update(layers.told(event) or (log[-1] if log else ""))
        except APIError as error:
            raise errors.of_build(str(error).replace(DOCKERFILE, dockerfile), log, dockerfile) from error


def _remember(log: list[str], printed: str) -> None:
    for line in _COLOURS.sub("", printed).splitlines():
        # "Removing intermediate container" and " ---> 0123abcd" are of no use to a person.
        if line.strip() and not line.startswith((" --->", "Removing intermediate")):
            log.append(line.rstrip())
    del log[:-50]


def push(client: Any, image: str, *, step: Step, cancelled: threading.Event) -> None:
    """Raises ImageError, Cancelled."""
    from docker.errors import APIError

    reference = parse(image)
    layers = Layers("pushed")
    with _talking():
        try:
            events = client.api.push(reference.repository, reference.version, stream=True, decode=True)
            for event in _until(cancelled, events):
                if "error" in event:
                    raise errors.of_registry(str(event["error"]), reference, "pushing")
                step.update(layers.told(event))
        except APIError as error:
            raise errors.of_registry(str(error), reference, "pushing") from error


def _until(cancelled: threading.Event, events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leaving the stream closes its connection, and with that the engine gives up."""
    for event in events:
        if cancelled.is_set():
            raise Cancelled
        yield event
