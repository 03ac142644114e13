"""What can be wrong with engine, registry and build, each with what to do: told from Docker's own words, for docker-py
reports most of it as a text in the last event."""

from cloudtrain.errors import CloudtrainError, Exit
from cloudtrain.image.reference import DOCKER_HUB, Reference


class ImageError(CloudtrainError):
    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint, Exit.ENGINE)


AWAY = (
    "connection refused",
    "no such host",
    "timeout",
    "timed out",
    "deadline exceeded",
    "no route to host",
    "network is unreachable",
    "connection reset",
    "server misbehaving",
    "certificate",
    "http response to https client",
    ": eof",
)
NO_LOGIN = ("no basic auth credentials", "authentication required", "unauthorized", "incorrect username or password")
DENIED = ("denied", "forbidden", "insufficient_scope")
MISSING = ("manifest unknown", "not found", "does not exist", "name unknown", "no such image")
NEEDS_BUILDKIT = "requires buildkit"


def says(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text.lower() for word in words)


def engine_away(error: Exception) -> ImageError:
    text = str(error)
    if "Permission denied" in text or "PermissionError" in text:
        return ImageError(
            "DockerDenied",
            "The Docker engine does not let this user in.",
            "sudo usermod -aG docker $USER  lets you in, from your next login on.",
        )
    return ImageError(
        "DockerNotRunning",
        f"No Docker engine answers: {_short(text)}",
        "Start Docker (sudo systemctl start docker), or say with DOCKER_HOST where it listens. Or name a published "
        "image, which needs no engine here: --image REFERENCE",
    )


def of_registry(text: str, reference: Reference, doing: str) -> ImageError:
    """What a registry, or the engine's talk with it, came to. doing: 'pushing', 'looking for'."""
    where = "Docker Hub" if reference.registry == DOCKER_HUB else f"the registry {reference.registry}"
    login = "docker login" + ("" if reference.registry == DOCKER_HUB else f" {reference.registry}")
    if says(text, AWAY):
        return ImageError(
            "RegistryUnreachable",
            f"{doing} {reference.repository}: {where} cannot be reached: {_short(text)}",
            "Check its name and your network, then run the same command again.",
        )
    if says(text, DENIED):
        return ImageError(
            "RegistryDenied",
            f"{doing} {reference.repository}: {where} denied it: {_short(text)}",
            f"Check the repository's name (Docker Hub: your user name/repository) and its rights, or {login}  "
            "as somebody who has them.",
        )
    if says(text, NO_LOGIN):
        return ImageError(
            "RegistryLoginNeeded",
            f"{doing} {reference.repository}: {where} wants a login: {_short(text)}",
            f"{login}  then run the same command again.",
        )
    return ImageError(
        "RegistryFailed",
        f"{doing} {reference.repository}: {_short(text)}",
        "Run the same command again; with -vv it shows what Docker said.",
    )


def no_such_image(reference: Reference) -> ImageError:
    return ImageError(
        "NoSuchImage",
        f"There is no image {reference.repository} in version {reference.version}, or it is private and nobody is "
        "logged in.",
        f"Check the name; a private one needs  docker login"
        f"{'' if reference.registry == DOCKER_HUB else ' ' + reference.registry}  here.",
    )


def of_build(text: str, log: list[str], dockerfile: str) -> ImageError:
    """Why a build ended, from its last event. log: what it printed last."""
    again = "then run the same command again."
    fetching = not log or log[-1].startswith("FROM ") or " : FROM " in log[-1]
    if NEEDS_BUILDKIT in text.lower():
        return ImageError(
            "BuildFailed",
            f"{dockerfile} cannot be built here: {_short(text)}",
            "docker build and docker push  it yourself, and name it: --image REFERENCE",
        )
    if fetching and says(text, (*AWAY, *NO_LOGIN, *DENIED, *MISSING)):
        return ImageError(
            "BaseImageMissing",
            f"The base image of {dockerfile} cannot be had: {_short(text)}",
            f"Check the name after FROM (--build-arg BASE_IMAGE=NAME names another), your network and login, {again}",
        )
    printed = "\n".join(f"  {line}" for line in log[-15:])
    return ImageError(
        "BuildFailed",
        f"{dockerfile} cannot be built: {_short(text)}" + (f"\n{printed}" if printed else ""),
        f"Put {dockerfile} right, {again}",
    )


def _short(text: str) -> str:
    # docker-py wraps what the engine said: 500 Server Error for http+docker://...: Internal Server Error ("...")
    said = text.partition('("')[2].rpartition('")')[0] if text.endswith('")') else text
    return " ".join((said or text).split())[:400]
