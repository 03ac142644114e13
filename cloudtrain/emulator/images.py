"""VM images: publishers, offers, SKUs and versions of the catalog."""

import re

from cloudtrain.emulator import catalog, preconditions
from cloudtrain.emulator.catalog import Image
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json
from cloudtrain.emulator.wire import Answer, ArmError, Request, same


def _id(request: Request, location: str, image: Image, depth: int) -> str:
    parts = (
        "Publishers",
        image.publisher,
        "ArtifactTypes",
        "VMImage",
        "Offers",
        image.offer,
        "Skus",
        image.sku,
    )
    kept = {1: 2, 2: 6, 3: 8}.get(depth, 8)
    path = "/".join(parts[:kept]) + (f"/Versions/{image.version}" if depth == 4 else "")
    return f"/Subscriptions/{request.subscription}/Providers/Microsoft.Compute/Locations/{location}/{path}"


def _images(location: str, publisher: str = "", offer: str = "", sku: str = "") -> list[Image]:
    preconditions.location({"location": location}, "locations/publishers")
    wanted = [
        image
        for image in catalog.IMAGES
        if (not publisher or same(image.publisher, publisher))
        and (not offer or same(image.offer, offer))
        and (not sku or same(image.sku, sku))
    ]
    if not wanted:
        raise ArmError(
            404,
            "NotFound",
            f"Artifact: VMImage was not found ({':'.join(p for p in (publisher, offer, sku) if p)}).",
        )
    return wanted


def _listed(request: Request, location: str, images: list[Image], depth: int) -> Answer:
    """A bare list, as Azure answers here."""
    shown: dict[str, Json] = {}
    for image in images:
        name = (image.publisher, image.offer, image.sku, image.version)[depth - 1]
        entry = {"location": location, "name": name, "id": _id(request, location, image, depth)}
        shown.setdefault(name.lower(), entry)
    return Answer(200, list(shown.values()))


def list_publishers(azure: Azure, request: Request, location: str) -> Answer:
    return _listed(request, location, _images(location), 1)


def list_offers(azure: Azure, request: Request, location: str, publisher: str) -> Answer:
    return _listed(request, location, _images(location, publisher), 2)


def list_skus(azure: Azure, request: Request, location: str, publisher: str, offer: str) -> Answer:
    return _listed(request, location, _images(location, publisher, offer), 3)


def list_versions(azure: Azure, request: Request, location: str, publisher: str, offer: str, sku: str) -> Answer:
    found = _images(location, publisher, offer, sku)
    if re.fullmatch(r"\s*name\s+desc\s*", request.query.get("$orderby", ""), re.IGNORECASE):
        found = found[::-1]
    top = request.query.get("$top", "")
    if top.isdigit():
        found = found[: int(top)]
    return _listed(request, location, found, 4)


def get_version(
    azure: Azure, request: Request, location: str, publisher: str, offer: str, sku: str, version: str
) -> Answer:
    _images(location, publisher, offer, sku)
    image = catalog.find_image(publisher, offer, sku, version)
    if image is None:
        raise ArmError(404, "NotFound", f"Artifact: VMImage was not found ({publisher}:{offer}:{sku}:{version}).")
    properties: Json = {
        "hyperVGeneration": image.generation,
        "architecture": "x64",
        "replicaType": "Unmanaged",
        "disallowed": {"vmDiskType": "None"},
        "automaticOSUpgradeProperties": {"automaticOSUpgradeSupported": False},
        "imageDeprecationStatus": {"imageState": "Active"},
    }
    if image.plan is not None:
        plan = image.plan
        properties["plan"] = {"publisher": plan.publisher, "name": plan.name, "product": plan.product}
    size = image.disk_gb
    properties["osDiskImage"] = {"operatingSystem": "Linux", "sizeInGb": size, "sizeInBytes": size * 1024**3}
    properties["dataDiskImages"] = []
    entry: Json = {"properties": properties, "location": location, "name": image.version}
    return Answer(200, {**entry, "id": _id(request, location, image, 4)})


_L = "/subscriptions/<subscription>/providers/microsoft.compute/locations/<location>/publishers"
_O = f"{_L}/<publisher>/artifacttypes/vmimage/offers"
_V = f"{_O}/<offer>/skus/<sku>/versions"
ROUTES = [
    Route("GET", _L, "VirtualMachineImages_ListPublishers", list_publishers),
    Route("GET", _O, "VirtualMachineImages_ListOffers", list_offers),
    Route("GET", f"{_O}/<offer>/skus", "VirtualMachineImages_ListSkus", list_skus),
    Route("GET", _V, "VirtualMachineImages_List", list_versions, "ListVMImagesVersionsFromLocation"),
    Route("GET", f"{_V}/<version>", "VirtualMachineImages_Get", get_version, "GetVMImageFromLocation"),
]
