"""The image that the VM boots: whether the region has it, and the plan it is sold under."""

from dataclasses import dataclass
from typing import Any

from cloudtrain.azure.errors import is_missing, translated
from cloudtrain.azure.session import Session
from cloudtrain.azure.words import word
from cloudtrain.errors import Refused

NOT_FOUND = "ImageNotFound"


@dataclass(frozen=True)
class Image:
    """plan: the Marketplace plan that a VM of this image must name, as the body of a VM wants it; None where it has
    none. generation: V1 or V2. architecture: x64 or Arm64."""

    version: str
    plan: dict[str, str] | None
    generation: str
    architecture: str


def find(session: Session, location: str, urn: str) -> Image:
    """urn: publisher:offer:sku:version. Looked up once. Raises Refused where the region does not have the image."""
    if (location, urn) not in session.images:
        session.images[location, urn] = _image(_version(session, location, urn))
    image: Image = session.images[location, urn]
    return image


def _image(found: Any) -> Image:
    plan = found.plan and {"name": found.plan.name, "product": found.plan.product, "publisher": found.plan.publisher}
    return Image(
        version=found.name,
        plan=plan or None,
        generation=word(found.hyper_v_generation),
        architecture=word(found.architecture),
    )


def plan(session: Session, location: str, urn: str) -> dict[str, str] | None:
    """The image's plan. Raises Refused."""
    return find(session, location, urn).plan


def _version(session: Session, location: str, urn: str) -> Any:
    from azure.core.exceptions import HttpResponseError

    publisher, offer, sku, version = urn.split(":")
    images = session.compute.virtual_machine_images
    with translated("looking up the VM image"):
        try:
            if version.lower() == "latest":
                versions = images.list(location, publisher, offer, sku, top=1, orderby="name desc")
                version = next(iter(versions)).name
            return images.get(location, publisher, offer, sku, version)
        except (HttpResponseError, StopIteration) as error:
            if isinstance(error, HttpResponseError) and not is_missing(error):
                raise
    raise Refused(
        NOT_FOUND,
        f"vm_image: '{urn}' is not offered in '{location}'.",
        "az vm image list --all --publisher NAME -o table  lists what is; or use --vm-image ubuntu-hpc.",
    )
