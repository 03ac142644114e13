"""Whether Azure will have a run: read side by side, then decided, before anything is made or paid.

Each check is a pure function of what was read. What could not be read leaves its check unknown: Azure decides then.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cloudtrain.azure import images, prices, providers, sizes, subscription, terms
from cloudtrain.azure.errors import HINTS
from cloudtrain.azure.images import Image
from cloudtrain.azure.policies import NOT_REGISTERED
from cloudtrain.azure.prices import Prices
from cloudtrain.azure.session import Session
from cloudtrain.azure.sizes import Cores, Size
from cloudtrain.azure.subscription import Subscription
from cloudtrain.azure.terms import Terms
from cloudtrain.checks import Check, State, failed, passed, undecided, unknown
from cloudtrain.errors import Blocks, CloudtrainError, Refused
from cloudtrain.spec import RunSpec
from cloudtrain.together import together

T = TypeVar("T")
PROVIDERS, TERMS = "providers", "terms"
# Offers without Spot VMs (Azure's documentation of Spot VMs); quotaIds of Free Trial and the two student offers.
OFFERS_WITHOUT_SPOT = ("FreeTrial", "AzureForStudents", "DreamSpark")
# Azure's reason codes of a restriction.
CLOSED_FIXES = {
    "NotAvailableForSubscription": "Choose another --size or --location; Azure's support opens sizes on request.",
    "QuotaId": "The subscription's kind of offer does not have it: choose another --size, or another --subscription.",
}
# A subscription in these states still makes resources, though a bill is open.
STATES_IN_USE = ("Enabled", "Warned", "PastDue")


@dataclass(frozen=True)
class Readings:
    """What Azure says, or why it could not be read. terms: None for an image without a plan."""

    login: str
    subscription: Subscription | CloudtrainError
    registrations: dict[str, str] | CloudtrainError
    regions: dict[str, str] | CloudtrainError
    sizes: dict[str, Size] | CloudtrainError
    spot_cores: Cores | CloudtrainError | None
    image: Image | CloudtrainError
    terms: Terms | CloudtrainError | None
    prices: Prices | CloudtrainError
    # Of the other locations, and of every other place of a list where a VM may be made.
    elsewhere: dict[str, dict[str, Size] | CloudtrainError] = field(default_factory=dict)
    other_prices: tuple[Prices | CloudtrainError, ...] = ()

    def size_of(self, name: str) -> Size | None:
        return None if isinstance(self.sizes, CloudtrainError) else self.sizes.get(name.lower())


def read(session: Session, spec: RunSpec) -> Readings:
    """Everything at once. The longest chain is three requests: image versions, image, terms."""
    others = [
        (size, place) for place in (spec.location, *spec.other_locations) for size in (spec.size, *spec.other_sizes)
    ]
    found, registrations, regions, offered, cores, image_and_terms, price, elsewhere, other_prices = together(
        lambda: _attempt(lambda: subscription.find(session)),
        lambda: _attempt(lambda: providers.states(session, _needed_providers(spec, sold=True))),
        lambda: _attempt(lambda: subscription.regions(session)),
        lambda: _attempt(lambda: sizes.offered(session, spec.location)),
        lambda: _attempt(lambda: sizes.spot_cores(session, spec.location)),
        lambda: _image_and_terms(session, spec),
        lambda: _attempt(lambda: prices.look_up(session, spec.location, spec.size)),
        lambda: together(*(lambda place=place: _offered(session, place) for place in spec.other_locations)),
        lambda: together(*(lambda one=one: _attempt(lambda: _price_of(session, *one)) for one in others[1:])),
    )
    image, agreed = image_and_terms
    return Readings(
        session.login,
        found,
        registrations,
        regions,
        offered,
        cores,
        image,
        agreed,
        price,
        dict(zip(spec.other_locations, elsewhere, strict=True)),
        tuple(other_prices),
    )


def _offered(session: Session, location: str) -> dict[str, Size] | CloudtrainError:
    return _attempt(lambda: sizes.offered(session, location))


def _price_of(session: Session, size: str, location: str) -> Prices:
    return prices.look_up(session, location, size)


def _attempt(reading: Callable[[], T]) -> T | CloudtrainError:
    try:
        return reading()
    except CloudtrainError as error:
        return error


def _image_and_terms(session: Session, spec: RunSpec) -> tuple[Image | CloudtrainError, Terms | CloudtrainError | None]:
    image = _attempt(lambda: images.find(session, spec.location, spec.vm_image))
    if isinstance(image, CloudtrainError):
        return image, image
    plan = image.plan
    return image, None if plan is None else _attempt(lambda: terms.read(session, plan))


def checks(seen: Readings, spec: RunSpec, held_size: str = "") -> list[Check]:
    """held_size: the size of the VM that the run has already, whose cores count as used."""
    place = _region(seen, spec)
    about_place: list[tuple[str, Callable[[], Check]]] = [
        ("size", lambda: _size(seen, spec)),
        ("spot", lambda: _spot(seen, spec)),
        ("restriction", lambda: _restriction(seen, spec)),
        ("quota", lambda: _quota(seen, spec, held_size)),
        ("vm_image", lambda: _vm_image(seen, spec)),
        (TERMS, lambda: _terms(seen, spec)),
        ("price", lambda: _price(seen, spec)),
    ]
    if spec.zones or spec.other_sizes or spec.other_locations:
        about_place.append(("other_places", lambda: _other_places(seen, spec)))
    if place.state is State.FAILED:
        later = [unknown(name, "This takes a region that exists.") for name, _ in about_place]
    else:
        later = [check() for _, check in about_place]
    return [passed("credential", seen.login), _subscription(seen), _providers(seen, spec), place, *later]


def missing_registrations(seen: Readings, spec: RunSpec) -> list[str]:
    """Providers that the run needs and the subscription is not registered for."""
    if isinstance(seen.registrations, CloudtrainError):
        return []
    sold = not isinstance(seen.image, CloudtrainError) and seen.image.plan is not None
    needed = _needed_providers(spec, sold=sold)
    return [name for name in needed if seen.registrations[name] != providers.REGISTERED]


def _needed_providers(spec: RunSpec, *, sold: bool) -> list[str]:
    """sold: the VM image has a plan."""
    marketplace = [providers.MARKETPLACE] if sold else []
    schedules = [providers.SCHEDULES] if spec.max_duration else []
    return [*providers.NEEDED, *marketplace, *schedules]


def _subscription(seen: Readings) -> Check:
    name, found = "subscription", seen.subscription
    if isinstance(found, CloudtrainError):
        # Whatever keeps the subscription from being read keeps everything else from being made.
        return failed(name, found)
    shown = f"{found.name} ({found.id})"
    if found.state not in STATES_IN_USE:
        return failed(
            name,
            Refused(
                "ReadOnlyDisabledSubscription",
                f"The subscription {shown} is {found.state.lower()}: nothing can be made in it.",
                HINTS["ReadOnlyDisabledSubscription"],
                Blocks.EVERYTHING,
            ),
        )
    if found.offer.startswith(OFFERS_WITHOUT_SPOT):
        code = "AzureSpotFeatureNotEnabledForSubscription"
        text = f"The offer of the subscription {shown}, {found.offer.split('_')[0]}, has no Spot VMs."
        return failed(name, Refused(code, text, HINTS[code], Blocks.SPOT))
    return passed(name, shown if found.state == "Enabled" else f"{shown}, {found.state}: look at its bills")


def _providers(seen: Readings, spec: RunSpec) -> Check:
    if isinstance(seen.registrations, CloudtrainError):
        return undecided(PROVIDERS, seen.registrations)
    missing = missing_registrations(seen, spec)
    if missing:
        return failed(
            PROVIDERS,
            Refused(
                NOT_REGISTERED,
                f"The subscription is not registered for {', '.join(missing)}.",
                HINTS[NOT_REGISTERED],
                Blocks.EVERYTHING,
            ),
        )
    return passed(
        PROVIDERS, "registered for " + ", ".join(n for n, s in seen.registrations.items() if s == "Registered")
    )


def _region(seen: Readings, spec: RunSpec) -> Check:
    if isinstance(seen.regions, CloudtrainError):
        return undecided("region", seen.regions)
    if spec.location in seen.regions:
        return passed("region", f"{spec.location} ({seen.regions[spec.location]})")
    error = Refused(
        "LocationNotFound",
        f"location: there is no region '{spec.location}' for this subscription.",
        _close(spec.location, list(seen.regions)) + "az account list-locations -o table  lists the names.",
        Blocks.REGION,
    )
    return failed("region", error)


def _size(seen: Readings, spec: RunSpec) -> Check:
    if isinstance(seen.sizes, CloudtrainError):
        return undecided("size", seen.sizes)
    size = seen.size_of(spec.size)
    if size is not None:
        return passed("size", hardware(size))
    error = Refused(
        "SizeNotFound",
        f"size: '{spec.size}' is not sold in '{spec.location}'.",
        _close(spec.size, [one.name for one in seen.sizes.values()])
        + f"az vm list-skus -l {spec.location} --resource-type virtualMachines -o table  lists what is.",
        Blocks.SIZE,
    )
    return failed("size", error)


def hardware(size: Size) -> str:
    gpus = f", {size.gpus} GPU{'s' if size.gpus > 1 else ''}" if size.gpus else ""
    return f"{size.name}: {size.vcpus} vCPU{'s' if size.vcpus > 1 else ''}, {size.memory_gb:g} GiB{gpus}"


def _spot(seen: Readings, spec: RunSpec) -> Check:
    size = seen.size_of(spec.size)
    if size is None:
        return unknown("spot", "This takes a size that is sold there.")
    if size.spot:
        return passed("spot", f"{size.name} can be a Spot VM")
    error = Refused(
        "AzureSpotIsNotSupportedForThisVMSize",
        f"size: '{spec.size}' cannot be a Spot VM (Azure says so of all B sizes and some others).",
        "Choose one that can, such as Standard_D2s_v3.",
        Blocks.SIZE,
    )
    return failed("spot", error)


def _restriction(seen: Readings, spec: RunSpec) -> Check:
    size = seen.size_of(spec.size)
    if size is None:
        return unknown("restriction", "This takes a size that is sold there.")
    if size.closed:
        error = Refused(
            "SkuNotAvailable",
            f"size: '{spec.size}' is closed to this subscription in '{spec.location}' ({size.closed}).",
            CLOSED_FIXES.get(size.closed, "Choose another --size or --location."),
            Blocks.SIZE,
        )
        return failed("restriction", error)
    if size.closed_zones:
        zones = ", ".join(size.closed_zones)
        asked = f"zone {', '.join(spec.zones)} is asked for" if spec.zones else "no zone is asked for"
        return passed("restriction", f"closed to this subscription in zone {zones} only; {asked}")
    return passed("restriction", "none")


def _other_places(seen: Readings, spec: RunSpec) -> Check:
    """Where recovery may make the VM: a slip there would show only once it is needed."""
    name, wrong = "other_places", _wrong_places(seen, spec)
    if wrong:
        return failed(name, Refused("PlaceNotFound", f"{'; '.join(wrong)}.", "Correct the list, or leave it out."))
    unread = [found for found in (seen.sizes, *seen.elsewhere.values()) if isinstance(found, CloudtrainError)]
    if unread:
        return undecided(name, unread[0])
    told = [f"zone {zone}" for zone in spec.zones] + list(spec.other_sizes) + list(spec.other_locations)
    return passed(name, ", ".join(told))


def _wrong_places(seen: Readings, spec: RunSpec) -> list[str]:
    wrong, regions = [], None if isinstance(seen.regions, CloudtrainError) else seen.regions
    for location in spec.other_locations:
        if regions is not None and location not in regions:
            wrong.append(f"other_locations: there is no region '{location}' for this subscription")
    if isinstance(seen.sizes, CloudtrainError):
        return wrong
    there = {spec.location: seen.sizes} | {
        name: found
        for name, found in seen.elsewhere.items()
        if not isinstance(found, CloudtrainError) and (regions is None or name in regions)
    }
    for location, offered in there.items():
        wrong += [_not_for_us(offered, size, location) for size in (spec.size, *spec.other_sizes)]
    own = seen.size_of(spec.size)
    for zone in spec.zones:
        if own is not None and (zone not in own.zones or zone in own.closed_zones):
            wrong.append(f"zones: '{spec.size}' is not to be had in zone {zone} of '{spec.location}'")
    # The size and the location themselves have checks of their own.
    return [one for one in dict.fromkeys(wrong) if one and f"'{spec.size}' is not sold in '{spec.location}'" not in one]


def _not_for_us(offered: dict[str, Size], name: str, location: str) -> str:
    size = offered.get(name.lower())
    if size is None:
        return f"other_sizes: '{name}' is not sold in '{location}'"
    if size.closed:
        return f"other_sizes: '{name}' is closed to this subscription in '{location}' ({size.closed})"
    return "" if size.spot else f"other_sizes: '{name}' cannot be a Spot VM"


def _quota(seen: Readings, spec: RunSpec, held_size: str) -> Check:
    cores, size = seen.spot_cores, seen.size_of(spec.size)
    if isinstance(cores, CloudtrainError):
        return undecided("quota", cores)
    if cores is None or size is None:
        return unknown("quota", "Azure names no Spot quota." if size else "This takes a size that is sold there.")
    held = seen.size_of(held_size) if held_size else None
    free = cores.limit - cores.used + (held.vcpus if held else 0)
    shown = f"{free} of {cores.limit} Spot vCPUs free in {spec.location}"
    if size.vcpus <= free:
        return passed("quota", f"{shown}, {size.vcpus} needed")
    return failed(
        "quota",
        Refused(
            "SpotQuotaExceeded",
            f"{spec.size} needs {size.vcpus} Spot vCPUs; {free} of {cores.limit} in '{spec.location}' are free.",
            f"{_fitting(seen, size, free)}Ask for more in the Azure portal: Quotas, Compute, 'Total Regional "
            f"Low-priority vCPUs' of {spec.location}, at least {cores.limit - free + size.vcpus}; or remove other Spot "
            "VMs (deallocated ones count too).",
            Blocks.SPOT,
        ),
    )


def _fitting(seen: Readings, wanted: Size, free: int) -> str:
    """Sizes that would do: the largest of the wanted one's kind first."""
    assert not isinstance(seen.sizes, CloudtrainError), "the wanted size came from there"
    fits = [
        size
        for size in seen.sizes.values()
        if size.spot and not size.closed and size.vcpus <= free and bool(size.gpus) == bool(wanted.gpus)
    ]
    names = [size.name for size in sorted(fits, key=lambda size: (-size.vcpus, -size.memory_gb, size.name))[:3]]
    return f"These fit: --size {', '.join(names)}. " if names else ""


def _vm_image(seen: Readings, spec: RunSpec) -> Check:
    image = seen.image
    if isinstance(image, CloudtrainError):
        return failed("vm_image", image) if image.code == images.NOT_FOUND else undecided("vm_image", image)
    size = seen.size_of(spec.size)
    if size and image.generation and size.generations and image.generation not in size.generations:
        ours, theirs = image.generation, " and ".join(size.generations)
        return failed("vm_image", _unbootable(spec, f"it is of generation {ours}, the size boots {theirs}"))
    if size and image.architecture and size.architecture and image.architecture != size.architecture:
        return failed("vm_image", _unbootable(spec, f"it is for {image.architecture}, the size is {size.architecture}"))
    return passed("vm_image", f"{spec.vm_image} is offered (version {image.version})")


def _unbootable(spec: RunSpec, why: str) -> Refused:
    return Refused(
        "ImageDoesNotFitSize",
        f"vm_image: '{spec.vm_image}' does not boot on '{spec.size}': {why}.",
        "Choose another --size or another --vm-image.",
        Blocks.SIZE,
    )


def _terms(seen: Readings, spec: RunSpec) -> Check:
    found = seen.terms
    if isinstance(seen.image, CloudtrainError):
        return unknown(TERMS, "This takes a VM image that is offered there.")
    if isinstance(found, CloudtrainError):
        return undecided(TERMS, found)
    if found is None:
        return passed(TERMS, "the VM image has none to accept")
    if found.accepted:
        return passed(TERMS, f"accepted: {found.license}")
    return failed(
        TERMS,
        Refused(
            "ResourcePurchaseValidationFailed",
            f"The terms of {spec.vm_image} are not accepted on this subscription. Read them: {found.license}",
            HINTS["ResourcePurchaseValidationFailed"],
            Blocks.EVERYTHING,
        ),
    )


def _price(seen: Readings, spec: RunSpec) -> Check:
    price = seen.prices
    if spec.max_cost and (isinstance(price, CloudtrainError) or price.spot is None):
        why = price.message if isinstance(price, CloudtrainError) else "the list has none"
        unkept = Refused(
            "PriceUnknown",
            f"max_cost: no price of {spec.size} in {spec.location} is known, so the limit could not be kept: {why}",
            "--max-cost none  goes without it; --max-duration limits the time instead.",
        )
        return failed("price", unkept)
    if isinstance(price, CloudtrainError):
        return undecided("price", price)
    if price.spot is None:
        return unknown("price", f"The price list has no Spot price of {spec.size} in {spec.location}.")
    limit = "up to the on-demand price" if spec.max_price == -1 else f"at most {spec.max_price:g} USD"
    if spec.max_price != -1 and spec.max_price < price.spot:
        error = Refused(
            "SpotPriceGreaterThanProvidedMaxPrice",
            f"max_price: {spec.max_price:g} USD an hour is below the Spot price of {spec.size} in {spec.location}, "
            f"{price.spot:g} USD.",
            HINTS["SpotPriceGreaterThanProvidedMaxPrice"],
            Blocks.SIZE,
        )
        return failed("price", error)
    on_demand = "unknown" if price.on_demand is None else f"{price.on_demand:g}"
    return passed("price", f"Spot {price.spot:g} USD an hour, on demand {on_demand}; to be paid: {limit}")


def _close(given: str, names: Sequence[str]) -> str:
    """The name that was probably meant, whatever its case."""
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(given.lower(), lower, n=1, cutoff=0.75)
    return f"Did you mean '{lower[close[0]]}'? " if close else ""


def without_session(error: CloudtrainError) -> list[Check]:
    """What there is to say where no session could be opened: no login, no network, no subscription. Raises any other
    error."""
    if error.code in ("NotLoggedIn", "CloudUnreachable"):
        return [failed("credential", error)]
    if error.code in ("NoSubscription", "SubscriptionNeeded"):
        return [passed("credential", "a login was found"), failed("subscription", error)]
    raise error
