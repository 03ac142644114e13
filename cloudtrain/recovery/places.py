"""Where a run may go, the best first."""

from collections.abc import Sequence

from cloudtrain.recovery.observed import Place


def places(
    size: str,
    location: str,
    *,
    zones: Sequence[str] = (),
    other_sizes: Sequence[str] = (),
    other_locations: Sequence[str] = (),
    on_demand: bool = False,
) -> tuple[Place, ...]:
    """The same size in each zone, then the other sizes there, then each other location, at last the same on demand.

    Zones are the location's own: elsewhere Azure chooses one."""
    sizes = tuple(dict.fromkeys((size, *other_sizes)))
    at_home = [Place(each, location, zone) for each in sizes for zone in zones or ("",)]
    elsewhere = [Place(each, other) for other in other_locations if other != location for each in sizes]
    spot = (*at_home, *elsewhere)
    paid = tuple(Place(each.size, each.location, each.zone, spot=False) for each in spot) if on_demand else ()
    return (*spot, *paid)
