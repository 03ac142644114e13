"""What can be told of the trainer image before anything is made."""

from cloudtrain.image import engine
from cloudtrain.image.errors import ImageError, no_such_image
from cloudtrain.image.reference import parse


def look(image: str, *, built: bool) -> str | None:
    """Whether the registry has it, in words; None where it cannot be asked from here (the VM may be able to).

    built: `up` builds it where it is missing, and needs engine and registry for that. Raises ImageError where the run
    could not have it."""
    try:
        with engine.connected() as client:
            there = engine.is_published_or_new(client, image) if built else engine.is_published(client, image)
    except ImageError as error:
        if built or error.code in ("RegistryLoginNeeded", "RegistryDenied"):
            raise
        return None
    if there:
        return f"{image} is in its registry"
    if built:
        return f"{image} is not in its registry yet: up builds and pushes it"
    raise no_such_image(parse(image))
