"""What the person rehearsing has set: quotas, Spot prices, where capacity is gone, and how long things take."""

import msgspec

from cloudtrain.emulator import catalog, timing
from cloudtrain.emulator.store import Records


class NotUnderstood(ValueError):
    """What was asked of the embedded Azure cannot be; the message says why."""


class Shortage(msgspec.Struct, kw_only=True, frozen=True):
    """Where there is no capacity; None stands for all of them. until: epoch seconds, None for ever."""

    size: str | None = None
    zone: str | None = None
    location: str | None = None
    until: float | None = None


class Settings(msgspec.Struct, frozen=True):
    """spot_cores, cores: quotas in all regions. quotas, prices: what was set for one region or one size, as
    'name in region'. latency: a profile of durations; factor: what they are multiplied by."""

    spot_cores: int
    cores: int
    quotas: dict[str, int]
    prices: dict[str, float]
    no_capacity: list[Shortage]
    latency: str
    factor: float


def current(records: Records, now: float) -> Settings:
    takes = records.setting("latency") or "rehearsal"
    return Settings(
        spot_cores=int(records.setting("spot_cores") or catalog.DEFAULT_SPOT_CORES),
        cores=int(records.setting("cores") or catalog.REGIONAL_CORES),
        quotas={_told(key): int(value) for key, value in records.settings("quota:").items()},
        prices={_told(key): float(value) for key, value in records.settings("price:").items()},
        no_capacity=shortages(records, now),
        latency=takes,
        factor=float(records.setting("latency_factor") or 1.0),
    )


def _told(key: str) -> str:
    what, _, region = key.partition(":")
    size = catalog.SIZES.get(what)
    return f"{size.name if size else what} in {region}"


# quotas and prices

_QUOTAS = {"spot_cores": "lowprioritycores", "cores": "cores"}


def set_quota(records: Records, which: str, cores: int, location: str | None) -> None:
    """which: 'spot_cores' or 'cores'. location None: every region, whatever was set for one of them."""
    if cores < 0:
        raise NotUnderstood(f"--{which.replace('_', '-')} is {cores}; expected 0 or more.")
    if location is not None:
        records.set_setting(f"quota:{_QUOTAS[which]}:{_region(location)}", str(cores))
        return
    for region in catalog.REGIONS:
        records.drop_setting(f"quota:{_QUOTAS[which]}:{region}")
    records.set_setting(which, str(cores))


def set_spot_price(records: Records, price: float, size: str | None, location: str | None) -> None:
    """USD an hour. location None: every region that has the size."""
    if size is None:
        raise NotUnderstood("--spot-price needs --size: which size's price?")
    if not 0 < price < 1000:
        raise NotUnderstood(f"--spot-price is {price:g}; expected US dollars an hour, more than 0 and less than 1000.")
    name = _size(size)
    if not catalog.SIZES[name].spot:
        raise NotUnderstood(f"{catalog.SIZES[name].name} cannot be Spot, so it has no Spot price.")
    for region in [_region(location)] if location else catalog.REGIONS:
        records.set_setting(f"price:{name}:{region}", repr(price))


# capacity

_SHORTAGE = "no_capacity:"


def set_shortage(
    records: Records, size: str | None, zone: str | None, location: str | None, until: float | None
) -> None:
    region = _region(location) if location else None
    if zone is not None and zone not in ("1", "2", "3"):
        raise NotUnderstood(f'--zone is "{zone}"; expected 1, 2 or 3.')
    shortage = Shortage(size=catalog.SIZES[_size(size)].name if size else None, zone=zone, location=region, until=until)
    place = ":".join(str(part or "*").lower() for part in (shortage.size, shortage.zone, shortage.location))
    records.set_setting(_SHORTAGE + place, msgspec.json.encode(shortage).decode())


def shortages(records: Records, now: float) -> list[Shortage]:
    """Those that last."""
    found = [msgspec.json.decode(text, type=Shortage) for text in records.settings(_SHORTAGE).values()]
    return [shortage for shortage in found if shortage.until is None or now < shortage.until]


def end_shortages(records: Records) -> None:
    for place in records.settings(_SHORTAGE):
        records.drop_setting(_SHORTAGE + place)


# time


def set_latency(records: Records, profile: str | None, factor: float | None) -> None:
    """A profile without a factor is taken as it is."""
    if profile is not None and profile not in timing.PROFILES:
        raise NotUnderstood(f'--latency is "{profile}"; expected one of {", ".join(timing.PROFILES)}.')
    if factor is not None and not 0 < factor <= timing.LONGEST_FACTOR:
        raise NotUnderstood(f"--factor is {factor:g}; expected more than 0, at most {timing.LONGEST_FACTOR:g}.")
    if profile is not None:
        records.set_setting("latency", profile)
        records.set_setting("latency_factor", repr(factor or 1.0))
    elif factor is not None:
        records.set_setting("latency_factor", repr(factor))


def back_to_defaults(records: Records) -> None:
    """As a subscription in use: quotas, prices, capacity and durations. Faults stay."""
    for prefix in ("quota:", "price:", _SHORTAGE):
        for key in records.settings(prefix):
            records.drop_setting(prefix + key)
    for key in ("cores", "latency", "latency_factor"):
        records.drop_setting(key)
    records.set_setting("spot_cores", str(catalog.DEFAULT_SPOT_CORES))


def _region(given: str) -> str:
    name = given.replace(" ", "").lower()
    if name not in catalog.REGIONS:
        raise NotUnderstood(f'"{given}" is no region of the embedded Azure; it has {", ".join(catalog.REGIONS)}.')
    return name


def _size(given: str) -> str:
    if given.lower() not in catalog.SIZES:
        names = ", ".join(size.name for size in catalog.SIZES.values())
        raise NotUnderstood(f'"{given}" is no size of the embedded Azure; it has {names}.')
    return given.lower()
