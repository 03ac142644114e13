"""Docker's image references, taken apart."""

from dataclasses import dataclass

DOCKER_HUB = "docker.io"


@dataclass(frozen=True)
class Reference:
    """registry: host, and :port where there is one. repository: with the registry, as Docker wants it. version: the
    tag, or the digest where one is given."""

    registry: str
    repository: str
    version: str


def parse(text: str) -> Reference:
    """github.com/distribution/reference: a first part with a dot or a colon, or `localhost`, is a registry; anything
    else is on Docker Hub."""
    name, _, digest = text.partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = name, "latest"
    first, slash, _ = repository.partition("/")
    hosted = bool(slash) and ("." in first or ":" in first or first == "localhost")
    return Reference(first if hosted else DOCKER_HUB, repository, digest or tag)
