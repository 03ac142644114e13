"""The right to pull a private image: from docker's own login on this machine to a docker config for the VM."""

import base64
import json

from cloudtrain.image import engine
from cloudtrain.image.errors import ImageError
from cloudtrain.image.reference import DOCKER_HUB, parse

HUB_KEY = "https://index.docker.io/v1/"


def pull_login(image: str) -> str | None:
    """The content of a docker config.json that lets the VM pull the image; None where it needs none, or nobody is
    logged in. Never printed, never stored here. Raises ImageError where docker's credential helper fails.

    Where no engine answers here, nobody can say whether the image is private: then the login goes along."""
    registry = parse(image).registry
    entry = _login_at(registry)
    if not entry or _is_public(image):
        return None
    return json.dumps({"auths": {HUB_KEY if registry == DOCKER_HUB else registry: entry}})


def _login_at(registry: str) -> dict[str, str]:
    """The entry for docker's config.json, from the config file or its credential helpers; empty without a login."""
    from docker.auth import load_config
    from docker.errors import DockerException

    try:
        found = load_config().resolve_authconfig(registry) or {}
    except DockerException as error:
        raise ImageError(
            "DockerCredentials",
            f"docker's credential helper did not give the login of {registry}: {error}",
            f"docker login {registry}  shows whether it works by itself.",
        ) from error
    # docker-py spells the keys in two ways: of the file, and of a helper.
    said = {key.lower(): value for key, value in found.items() if value}
    if said.get("identitytoken"):
        return {"identitytoken": said["identitytoken"]}
    if said.get("username") and said.get("password"):
        return {"auth": base64.b64encode(f"{said['username']}:{said['password']}".encode()).decode()}
    return {}


def _is_public(image: str) -> bool:
    try:
        with engine.connected() as client:
            return engine.is_published(client, image, anonymous=True)
    except ImageError:
        return False
