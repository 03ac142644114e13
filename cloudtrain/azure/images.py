"""The image that the VM boots: whether the region has it, and the plan it is sold under."""

from typing import Any

from cloudtrain.azure.errors import is_missing, translated
from cloudtrain.azure.session import Session
from cloudtrain.errors import Refused


def plan(session: Session, location: str, urn: str) -> dict[str, str] | None:
    """The Marketplace plan that a VM of this image must name, as the body of a VM wants it; None where it has none.

    urn: publisher:offer:sku:version. Raises Refused where the region does not have the image."""
    found = _image(session, location, urn).plan
    if found is None:
        return None
    return {"name": found.name, "product": found.product, "publisher": found.publisher}


def _image(session: Session, location: str, urn: str) -> Any:
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
        "ImageNotFound",
        f"vm_image: '{urn}' is not offered in '{location}'.",
        "az vm image list --all --publisher NAME -o table  lists what is; or use --vm-image ubuntu-hpc.",
    )
