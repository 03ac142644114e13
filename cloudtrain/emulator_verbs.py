"""`emulator set` and `emulator fault`: what the embedded Azure is told before a failure is rehearsed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from cloudtrain.call import SPEAKING, Call, Outcome, usage, verb

emulator_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
fault_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
emulator_app.add_typer(fault_app, name="fault", help="Make requests to the embedded Azure go wrong.")


@contextmanager
def _emulator(call: Call) -> Iterator[Any]:
    """The embedded Azure; what it does not understand becomes wrong usage."""
    from cloudtrain.azure.session import embedded_azure
    from cloudtrain.clock import SystemClock
    from cloudtrain.emulator.settings import NotUnderstood

    emulator = embedded_azure(call.home, SystemClock())
    try:
        yield emulator
    except NotUnderstood as error:
        raise usage(str(error), call.command) from error
    finally:
        emulator.close()


@verb(emulator_app, SPEAKING, name="set")
def emulator_set(
    call: Call,
    spot_cores: Annotated[
        int | None, typer.Option(metavar="N", help="Quota of Spot cores.", show_default=False)
    ] = None,
    cores: Annotated[int | None, typer.Option(metavar="N", help="Quota of other cores.", show_default=False)] = None,
    spot_price: Annotated[
        float | None, typer.Option(metavar="USD", help="Spot price an hour of --size.", show_default=False)
    ] = None,
    no_capacity: Annotated[
        bool, typer.Option("--no-capacity", help="Have no more VMs to give (of --size, in --zone, --location).")
    ] = False,
    capacity: Annotated[bool, typer.Option("--capacity", help="Have VMs to give again, everywhere.")] = False,
    size: Annotated[str | None, typer.Option(help="For this VM size only.", show_default=False)] = None,
    zone: Annotated[str | None, typer.Option(help="For this zone only.", show_default=False)] = None,
    location: Annotated[str | None, typer.Option(help="For this region only.", show_default=False)] = None,
    seconds: Annotated[
        float | None,
        typer.Option("--for", metavar="SECONDS", help="How long --no-capacity lasts.", show_default=False),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(metavar="azure|rehearsal", help="Whose durations operations have.", show_default=False),
    ] = None,
    factor: Annotated[
        float | None, typer.Option(help="What the durations are multiplied by.", show_default=False)
    ] = None,
    defaults: Annotated[bool, typer.Option("--defaults", help="First put everything back as it was.")] = False,
) -> Outcome:
    """Set quotas, Spot prices, capacity and durations.

    Without options it shows them. A Spot VM whose maximum price is below the new price is evicted.
    """
    from cloudtrain import render
    from cloudtrain.emulator import settings

    _check_scopes(call, spot_cores, cores, spot_price, no_capacity, size, zone, location, seconds)

    def change(records: Any, now: float) -> None:
        if defaults:
            settings.back_to_defaults(records)
        for which, amount in (("spot_cores", spot_cores), ("cores", cores)):
            if amount is not None:
                settings.set_quota(records, which, amount, location)
        if spot_price is not None:
            settings.set_spot_price(records, spot_price, size, location)
        if capacity:
            settings.end_shortages(records)
        if no_capacity:
            settings.set_shortage(records, size, zone, location, None if seconds is None else now + seconds)
        settings.set_latency(records, latency, factor)

    with _emulator(call) as emulator:
        return call.done(emulator.set(change), render.emulator_settings)


def _check_scopes(
    call: Call,
    spot_cores: int | None,
    cores: int | None,
    spot_price: float | None,
    no_capacity: bool,
    size: str | None,
    zone: str | None,
    location: str | None,
    seconds: float | None,
) -> None:
    """An option that narrows nothing is a mistake, not something to pass over."""
    quota, price = spot_cores is not None or cores is not None, spot_price is not None
    for flag, value, narrows, needs in (
        ("--size", size, price or no_capacity, "--spot-price or --no-capacity"),
        ("--zone", zone, no_capacity, "--no-capacity"),
        ("--for", seconds, no_capacity, "--no-capacity"),
        (
            "--location",
            location,
            quota or price or no_capacity,
            "--spot-cores, --cores, --spot-price or --no-capacity",
        ),
    ):
        if value is not None and not narrows:
            raise usage(f"{flag} says where or how long, and goes with {needs}.", call.command)
    if seconds is not None and seconds <= 0:
        raise usage(f"--for is {seconds:g}; expected more than 0 seconds.", call.command)


@verb(fault_app, SPEAKING, name="add")
def fault_add(
    call: Call,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What goes wrong, see above.")],
    on: Annotated[
        str | None,
        typer.Option(
            metavar="OPERATION|'METHOD PATH'",
            help="Which requests: VirtualMachines_Start, VirtualMachines_*, 'PUT */virtualMachines/*' ...",
            show_default=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", help="How often; 0: for ever.  [1]", show_default=False)] = 1,
    after: Annotated[
        int, typer.Option(metavar="N", help="Matching requests to let pass first.  [0]", show_default=False)
    ] = 0,
    probability: Annotated[
        float, typer.Option(metavar="P", help="Of a matching request to be struck.  [1]", show_default=False)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed strikes the same requests.  [0]", show_default=False)] = 0,
    code: Annotated[
        str | None, typer.Option(help="Azure's error code, for refuse and fail-late.", show_default=False)
    ] = None,
    retry_after: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="Retry-After header, for 429, 500 and 503.", show_default=False),
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="How long to hang.", show_default=False)] = None,
) -> Outcome:
    """Add a fault: requests that match go wrong.

    KIND is one of 429, 500, 503 (the answer), drop-before, drop-after (the connection is dropped, before or after the
    work is done), hang, refuse, fail-late (an operation is accepted, and fails), busy (another RunCommand is running),
    lose-script (a script is cut off half way, and reported as a success), mute-script (a script is reported as running
    for ever), evict-creating, evict (without notice), delete-group.
    """
    from cloudtrain import render
    from cloudtrain.emulator.faults import Faults

    with _emulator(call) as emulator:
        rule = emulator.add_fault(
            kind,
            on=on,
            count=count or None,
            after=after,
            probability=probability,
            seed=seed,
            code=code,
            retry_after=retry_after,
            seconds=seconds,
        )
        return call.done(Faults([rule]), render.faults)


@verb(fault_app, SPEAKING, name="list")
def fault_list(call: Call) -> Outcome:
    """Show the faults, and how often each has struck."""
    from cloudtrain import render
    from cloudtrain.emulator.faults import Faults

    with _emulator(call) as emulator:
        return call.done(Faults(emulator.fault_rules()), render.faults)


@verb(fault_app, SPEAKING, name="clear")
def fault_clear(
    call: Call,
    numbers: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Which. Default: all.")] = None,
) -> Outcome:
    """Remove faults: these, or all of them."""
    from cloudtrain import render
    from cloudtrain.emulator.faults import Faults

    with _emulator(call) as emulator:
        return call.done(Faults(emulator.clear_faults(numbers or [])), render.faults)
