"""The command line: one thin function per verb (parse -> call -> render)."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from cloudtrain import __version__
from cloudtrain.call import PLACE, PROGRESS, RUN, SPEAKING, Call, Outcome, run, usage, verb, write
from cloudtrain.emulator_verbs import emulator_app
from cloudtrain.errors import CloudtrainError, Exit

if TYPE_CHECKING:
    from cloudtrain.config import Target
    from cloudtrain.image import Build
    from cloudtrain.lifecycle.context import Context
    from cloudtrain.secret_values import SecretValues
    from cloudtrain.spec import RunSpec, Settings
    from cloudtrain.workflow.plan import Plan
    from cloudtrain.workflow.pull import Destination

app = typer.Typer(
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cloudtrain {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train a model on an Azure Spot VM and lose nothing when Azure takes the VM back.

    Without --cloud azure everything is a rehearsal on the embedded Azure: on this machine, for free.
    """


# What `up` and `doctor` take alike.
Location = Annotated[str | None, typer.Option(help="Azure region.  [eastus]", show_default=False)]
Size = Annotated[str | None, typer.Option(help="VM size.  [Standard_D2s_v3]", show_default=False)]
VmImage = Annotated[
    str | None, typer.Option(metavar="NAME|URN", help="nvidia, ubuntu-hpc, or a URN.  [nvidia]", show_default=False)
]
MaxPrice = Annotated[
    str | None,
    typer.Option(metavar="USD", help="Most to pay an hour; -1: the on-demand price.  [-1]", show_default=False),
]
Image = Annotated[
    str | None, typer.Option(metavar="REFERENCE", help="A published trainer image, used as it is.", show_default=False)
]
AcceptTerms = Annotated[
    bool, typer.Option("--accept-terms", help="Accept the VM image's terms; shows where to read them.")
]


@verb(app, RUN, PLACE, SPEAKING)
def up(
    call: Call,
    location: Location = None,
    size: Size = None,
    vm_image: VmImage = None,
    max_price: MaxPrice = None,
    eviction_policy: Annotated[
        str | None,
        typer.Option(metavar="Deallocate|Delete", help="What Azure does to the VM.  [Deallocate]", show_default=False),
    ] = None,
    image: Image = None,
    repository: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Build the trainer image and push it there.", show_default=False),
    ] = None,
    dockerfile: Annotated[
        str | None, typer.Option(metavar="FILE", help="Build your own.  [the trainer's]", show_default=False)
    ] = None,
    build_context: Annotated[
        str | None,
        typer.Option(
            "--context",
            metavar="DIRECTORY",
            help="What the build gets.  [the Dockerfile's directory]",
            show_default=False,
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(metavar="cpu|gpu", help="TensorFlow in the image.  [what the VM size has]", show_default=False),
    ] = None,
    build_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An ARG of the Dockerfile.", show_default=False),
    ] = None,
    mount: Annotated[
        str | None,
        typer.Option(help="Where the container keeps checkpoints.  [/app/Saved_Model]", show_default=False),
    ] = None,
    ssh_key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Public key to let in.  [a pair of the run's own]", show_default=False),
    ] = None,
    disk_gb: Annotated[
        str | None, typer.Option(metavar="GIB", help="Size of the VM's disk.  [64]", show_default=False)
    ] = None,
    ssh: Annotated[
        str | None,
        typer.Option(
            metavar="[CIDR]", help="Let this machine, or a network, log in at port 22.  [none]", show_default=False
        ),
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(metavar="process|container", help="What a rehearsal's VM runs on.  [process]", show_default=False),
    ] = None,
    other_size: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZE", help="Recovery may change to it; may be repeated.", show_default=False),
    ] = None,
    zone: Annotated[
        list[str] | None,
        typer.Option(metavar="1|2|3", help="Availability zone; repeated: others to go to.", show_default=False),
    ] = None,
    other_location: Annotated[
        list[str] | None,
        typer.Option(metavar="REGION", help="Recovery may move to it; may be repeated.", show_default=False),
    ] = None,
    fallback: Annotated[
        str | None,
        typer.Option(
            metavar="on-demand[:AFTER]", help="Pay on demand where no Spot VM is to be had.", show_default=False
        ),
    ] = None,
    max_duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="Save and stop after it: 36h, 1d12h.", show_default=False)
    ] = None,
    max_cost: Annotated[
        str | None, typer.Option(metavar="USD", help="Save and stop before it is spent.", show_default=False)
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A variable of the trainer; may be repeated.", show_default=False),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=@FILE]", help="One with a value kept secret.  [your $NAME]", show_default=False),
    ] = None,
    when_done: Annotated[
        str | None,
        typer.Option(metavar="deallocate|delete|keep", help="The VM, once finished.  [deallocate]", show_default=False),
    ] = None,
    accept_terms: AcceptTerms = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be made and its price; stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before what costs money.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until training has ended.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and watch; bring the run back if evicted.")] = False,
) -> Outcome:
    """Make the run and start training.

    Run it again, and it goes on with whatever is missing.

    Arguments after -- go to the trainer: cloudtrain up horses -- --epochs 10
    """
    from cloudtrain import config, render, runs
    from cloudtrain.checks import errors_of
    from cloudtrain.errors import all_of
    from cloudtrain.spec import number
    from cloudtrain.workflow import up as workflow

    flags = {
        "run": call.run,
        "cloud": call.cloud,
        "subscription": call.subscription,
        "location": location,
        "size": size,
        "vm_image": vm_image,
        "max_price": None if max_price is None else number(max_price),
        "eviction_policy": eviction_policy,
        "image": image,
        "repository": repository,
        "dockerfile": dockerfile,
        "context": build_context,
        "variant": variant,
        "build_args": build_arg or None,
        "mount": mount,
        "ssh_key": ssh_key,
        "disk_gb": None if disk_gb is None else number(disk_gb),
        "ssh": ssh,
        "machine": machine,
        "other_sizes": other_size or None,
        "zones": zone or None,
        "other_locations": other_location or None,
        "fallback": fallback,
        "max_duration": max_duration,
        "max_cost": None if max_cost is None else number(max_cost),
        "env": env or None,
        "secrets": secret or None,
        "when_done": when_done,
        "trainer_args": call.arguments,
    }
    directory = Path.cwd()
    table = config.read(directory)
    settings = config.settings_for_up(table, flags, directory)
    notes = config.name_note(settings.run, bool(call.run or "run" in table), directory)
    target = call.aim(config.target_for_up(settings, runs.clouds_of(call.home, settings.run), notes))
    if machine is not None and target.cloud == "azure":
        raise usage("--machine says what the VM of a rehearsal runs on; on Azure it is Azure's.", "up")
    with call.opened(target, settings.machine) as ctx:
        settings = workflow.with_callers_address(ctx, settings)
        if dry_run:
            existing = workflow.current_spec(ctx, settings.run)
            spec = _spec_without_key(ctx, settings, existing)
            plan, checks = workflow.dry_run(ctx, spec, accept_terms=accept_terms)
            return call.done(plan, render.plan, all_of(errors_of(checks)))
        spec, build = _spec(call, ctx, settings)
        secrets = _secrets(settings, spec)
        ctx.progress.note(_where(spec, ctx.session.capabilities.bills))
        with _remembered(call, ctx, spec):
            approve = None if yes or not _somebody_is_here() else _ask_for(ctx.progress)
            try:
                result = workflow.up(
                    ctx, spec, build, accept_terms=accept_terms, approve=approve, secrets=secrets, watched=watch
                )
            except CloudtrainError as error:
                if not (watch and workflow.waits_for_room(error)):
                    raise
                return _watch_from_the_first(call, ctx, error)
        if watch:
            return _watch_on(call, ctx, result)
        if follow:
            return _follow(call, ctx, result)
    return call.done(result, render.up)


def _spec(call: Call, ctx: "Context", settings: "Settings") -> "tuple[RunSpec, Build | None]":
    from cloudtrain import runs, spec
    from cloudtrain.workflow import trainer_image
    from cloudtrain.workflow.up import current_spec

    existing = current_spec(ctx, settings.run)
    public_key = settings.ssh_key or (existing.ssh_public_key if existing else "")
    if not public_key:
        _, public_key = runs.key_pair(call.home, ctx.session.cloud, settings.run)
    build = trainer_image.planned(ctx.session, ctx.progress, settings, existing)
    return spec.resolve(settings, ctx.session.defaults, public_key, existing, trainer_image.built(build)), build


def _secrets(settings: "Settings", spec: "RunSpec") -> "SecretValues":
    """Those that were asked for now have to be at hand."""
    from cloudtrain import secret_values

    found = secret_values.read(spec.secrets, dict(settings.secrets or ()))
    if settings.secrets is not None:
        secret_values.refuse_missing(found, spec.run)
    return found


def _spec_without_key(ctx: "Context", settings: "Settings", existing: "RunSpec | None") -> "RunSpec":
    """As `_spec`, but makes nothing: no key pair, and no image needs a name."""
    from cloudtrain import spec
    from cloudtrain.workflow import trainer_image

    public_key = existing.ssh_public_key if existing else ""
    build = trainer_image.planned(ctx.session, ctx.progress, settings, existing)
    return spec.complete(settings, ctx.session.defaults, public_key, existing, trainer_image.built(build))


def _ask_for(display: Any) -> Callable[["Plan"], None]:
    """Shows a plan and asks once. Raises CloudtrainError where the answer is not yes."""
    from cloudtrain import render

    def ask(plan: "Plan") -> None:
        with display.out_of_the_way():
            lines = render.plan(render.cleaned(plan), render.paint_for(sys.stderr))
            print("\n".join(lines), file=sys.stderr)
            if not _answered_yes("Make it?"):
                raise CloudtrainError("NotConfirmed", "Nothing was made.")

    return ask


def _where(spec: "RunSpec", bills: bool) -> str:
    """The first line of `up`: whether this costs money."""
    if bills:
        return f"On Azure: the VM is billed from its start to cloudtrain stop {spec.run} or cloudtrain down {spec.run}."
    data_set = _data_set(spec.arguments)
    return (
        "This is a rehearsal on the embedded Azure: nothing is billed. "
        + (f"It trains on the data set '{data_set}'. " if data_set else "")
        + f"The real one: cloudtrain up {spec.run} --cloud azure"
    )


def _data_set(arguments: tuple[str, ...]) -> str:
    """What `--dataset` says; the last one counts, as in the trainer."""
    found = ""
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=False):
        if argument == "--dataset":
            found = following
        elif argument.startswith("--dataset="):
            found = argument.partition("=")[2]
    return found


@contextmanager
def _remembered(call: Call, ctx: "Context", spec: "RunSpec") -> Iterator[None]:
    """The index knows the run from before its first resource on; a run that was refused leaves no entry."""
    from cloudtrain import runs
    from cloudtrain.azure import names
    from cloudtrain.workflow.up import current_spec

    hint = runs.Hint(
        cloud=ctx.session.cloud,
        subscription=ctx.session.subscription_id,
        location=spec.location,
        resource_group=names.group(spec.run),
        created=ctx.clock.now().isoformat(timespec="seconds"),
    )
    known = runs.recall(call.home, hint.cloud, spec.run) is not None
    runs.remember(call.home, spec.run, hint)
    try:
        yield
    except CloudtrainError:
        # Azure may be out of reach by now, and then nobody knows: the entry stays.
        with suppress(CloudtrainError):
            if not known and current_spec(ctx, spec.run) is None:
                runs.forget(call.home, hint.cloud, spec.run)
        raise


def _follow(call: Call, ctx: "Context", begun: Any) -> Outcome:
    import msgspec

    from cloudtrain import render
    from cloudtrain.workflow.follow import follow

    if call.as_json:
        write(render.event("up", data=msgspec.to_builtins(begun)) + "\n")
    with _log_stream(call, ctx.progress) as emit:
        end = follow(ctx, begun.run, emit)
    result = msgspec.structs.replace(begun, state=end.state, training=end.training)
    error = _training_failed(begun.run) if end.state == "failed" else None
    return call.done(result, render.up, error)


def _watch_on(call: Call, ctx: "Context", begun: Any) -> Outcome:
    import msgspec

    from cloudtrain import render

    if call.as_json:
        write(render.event("up", data=msgspec.to_builtins(begun)) + "\n")
    else:
        write("".join(line + "\n" for line in render.up(render.cleaned(begun), render.paint_for(sys.stdout))))
    return _watch(call, ctx, once=False)


def _watch_from_the_first(call: Call, ctx: "Context", refused: Any) -> Outcome:
    """`up --watch` got no VM: the watcher tries the other places, and again."""
    from cloudtrain.workflow import watch

    ctx.progress.note(
        f"{refused.message} The watcher goes on trying; Ctrl-C ends it, and cloudtrain down ends the run."
    )
    watch.search_on(ctx, call.run or "", refused)
    return _watch(call, ctx, once=False)


def _watch(call: Call, ctx: "Context", *, once: bool) -> Outcome:
    import msgspec

    from cloudtrain import render
    from cloudtrain.workflow import watch as workflow

    paint, display = render.paint_for(sys.stdout), cast(Any, ctx.progress)

    def emit(line: workflow.WatchLine) -> None:
        if call.as_json:
            write(render.event("watch", **msgspec.to_builtins(line)) + "\n")
        else:
            with display.out_of_the_way():
                write(render.watch_line(render.cleaned(line), paint) + "\n")

    result = workflow.watch(ctx, call.run or "", once=once, emit=emit)
    return Outcome(msgspec.to_builtins(result), error=workflow.error_of(result))


def _training_failed(run: str) -> CloudtrainError:
    return CloudtrainError(
        "TrainingFailed",
        f"Training of run '{run}' ended without finishing.",
        f"cloudtrain logs {run} --source container  shows what the trainer said.",
        Exit.TRAINING_FAILED,
    )


@contextmanager
def _log_stream(call: Call, display: Any) -> Iterator[Callable[[str], None]]:
    """Where a log goes while it grows: to a person as text, to a program as an event a line."""
    from cloudtrain import render
    from cloudtrain.display import LogLines, LogText

    stream: LogLines | LogText
    if call.as_json:
        stream = LogLines(lambda line: write(render.event("log", line=line) + "\n"))
    else:
        stream = LogText(display, write)
    try:
        yield stream
    finally:
        stream.end()


@verb(app, RUN, PLACE, SPEAKING)
def doctor(
    call: Call,
    location: Location = None,
    size: Size = None,
    vm_image: VmImage = None,
    max_price: MaxPrice = None,
    image: Image = None,
    register: Annotated[
        bool, typer.Option("--register", help="Register the subscription for what a run needs; free.")
    ] = False,
    accept_terms: AcceptTerms = False,
) -> Outcome:
    """Check login, quota, size, terms, price; change nothing.

    The same checks that up makes first, each with its fix. Ends with the exit code of the first that failed.
    """
    from cloudtrain import config, render
    from cloudtrain.spec import number
    from cloudtrain.workflow import doctor as workflow

    flags = {
        "run": call.run,
        "cloud": call.cloud,
        "subscription": call.subscription,
        "location": location,
        "size": size,
        "vm_image": vm_image,
        "max_price": None if max_price is None else number(max_price),
        "image": image,
    }
    directory = Path.cwd()
    settings = config.settings_for_up(config.read(directory), flags, directory)
    target = call.find_target()
    try:
        with call.opened(target) as ctx:
            result, error = workflow.doctor(
                ctx,
                target.run,
                lambda existing: _spec_without_key(ctx, settings, existing),
                register=register,
                accept_terms=accept_terms,
            )
    except CloudtrainError as failure:
        result, error = workflow.without_session(target.run, target.cloud, failure)
    return call.done(result, render.doctor, error)


@verb(app, RUN, PLACE, SPEAKING)
def status(call: Call) -> Outcome:
    """Show the run: its VM, how far training is."""
    from cloudtrain import render
    from cloudtrain.workflow import status as workflow

    with call.opened(call.find_target()) as ctx:
        result = workflow.status(ctx, call.run or "")
    return call.done(result, render.status)


@verb(app, RUN, PLACE, SPEAKING)
def logs(
    call: Call,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay, and show the log as it grows.")] = False,
    source: Annotated[str, typer.Option(metavar="training|container|startup|eviction", help="Which log.")] = "training",
) -> Outcome:
    """Show a log of the run, and follow it."""
    import msgspec

    from cloudtrain.workflow import logs as workflow

    if source not in workflow.SOURCES:
        raise usage(f'--source is "{source}"; expected one of {", ".join(workflow.SOURCES)}.', "logs")
    chunks: list[str] = []
    with call.opened(call.find_target()) as ctx:
        run = call.run or ""
        if call.as_json and not follow:
            result = workflow.logs(ctx, run, source=source, follow=False, emit=chunks.append)
        else:
            with _log_stream(call, ctx.progress) as emit:
                result = workflow.logs(ctx, run, source=source, follow=follow, emit=emit)
    text = {} if follow else {"text": "".join(chunks)}
    return Outcome(msgspec.to_builtins(result) | text)


@verb(app, RUN, PLACE, SPEAKING)
def pull(
    call: Call,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="The newest checkpoints too.")] = False,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIRECTORY", help="Where to.  [./RUN]", show_default=False, file_okay=False),
    ] = None,
) -> Outcome:
    """Bring home what the run made: its model, logs, metrics.

    From storage, whether its VM is up or not. Run it again, and it fetches what has changed. It replaces only what it
    wrote itself, and deletes nothing.
    """
    from cloudtrain import render
    from cloudtrain.workflow import pull as workflow

    target = call.find_target()
    with call.opened(target) as ctx:
        result = workflow.pull(ctx, target.run, _destination(call, target, to), checkpoints=checkpoints)
    return call.done(result, render.pull)


def _destination(call: Call, target: "Target", to: Path | None = None) -> "Destination":
    """Where the run's files come home to; remembered once it is chosen."""
    from cloudtrain import runs
    from cloudtrain.workflow.pull import Destination

    return Destination(
        to=to,
        last=runs.last_pull(call.home, target.cloud, target.run),
        chosen=lambda where: runs.remember_pull(call.home, target.cloud, target.run, where),
    )


@verb(app, RUN, PLACE, SPEAKING)
def ssh(call: Call) -> Outcome | int:
    """Log in to the run's VM, or run a command there.

    Needs up --ssh. One word after -- is a line for the VM's shell; several arrive there as they are.
    """
    from cloudtrain import runs
    from cloudtrain.workflow import ssh as workflow

    target = call.find_target()
    with call.opened(target) as ctx:
        login = workflow.login(ctx, target.run, runs.directory(call.home, target.cloud, target.run), call.arguments)
    if call.as_json:
        return call.done(login, lambda result, paint: [])
    return workflow.connect(login)


@verb(app, RUN, PLACE, SPEAKING)
def stop(call: Call) -> Outcome:
    """Save, deallocate the VM, keep its disk."""
    from cloudtrain import render
    from cloudtrain.workflow import stop as workflow

    with call.opened(call.find_target()) as ctx:
        result = workflow.stop(ctx, call.run or "")
    return call.done(result, render.stop)


@verb(app, RUN, PLACE, SPEAKING)
def restart(call: Call) -> Outcome:
    """Start the VM if it is off, reboot it if it runs.

    Ends when training is under way again.
    """
    from cloudtrain import config, render
    from cloudtrain.workflow import restart as workflow

    files = config.secret_files(Path.cwd())
    with call.opened(call.find_target()) as ctx:
        result = workflow.restart(ctx, call.run or "", files)
    return call.done(result, render.restart)


@verb(app, RUN, PLACE, SPEAKING)
def simulate_eviction(
    call: Call,
    notice: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="Warning before the cut; 0: none.  [30]", show_default=False),
    ] = None,
    no_restart: Annotated[bool, typer.Option("--no-restart", help="Leave the VM evicted.")] = False,
) -> Outcome:
    """Take the VM away, bring it back, count the loss."""
    from cloudtrain import render
    from cloudtrain.workflow import simulate_eviction as workflow

    seconds = None if notice is None else _notice(notice)
    with call.opened(call.find_target()) as ctx:
        result = workflow.simulate_eviction(ctx, call.run or "", notice=seconds, bring_back=not no_restart)
    return call.done(result, render.simulate_eviction)


def _notice(text: str) -> float:
    from cloudtrain.spec import number

    seconds = number(text)
    if isinstance(seconds, str) or not 0 <= seconds <= 3600:
        raise usage(f'--notice is "{text}"; expected seconds from 0 to 3600.', "simulate-eviction")
    return float(seconds)


@verb(app, RUN, PLACE, SPEAKING)
def watch(
    call: Call,
    once: Annotated[bool, typer.Option("--once", help="Look once, act once, end: for cron.")] = False,
) -> Outcome:
    """Bring the run back whenever Azure evicts it.

    Stays until the run is over. Any number may watch, from anywhere; one that is killed is replaced by the next.
    """
    with call.opened(call.find_target()) as ctx:
        return _watch(call, ctx, once=once)


@verb(app, RUN, PLACE, SPEAKING)
def history(call: Call) -> Outcome:
    """Show what happened to the run, where its time went."""
    from cloudtrain import render
    from cloudtrain.workflow import history as workflow

    with call.opened(call.find_target()) as ctx:
        result = workflow.history(ctx, call.run or "")
    return call.done(result, render.history)


@verb(app, RUN, PLACE, SPEAKING)
def down(
    call: Call,
    discard: Annotated[bool, typer.Option("--discard", help="Do not bring home first what the run made.")] = False,
    network_watcher: Annotated[
        bool, typer.Option("--network-watcher", help="Delete NetworkWatcherRG too, if nothing else needs it.")
    ] = False,
) -> Outcome:
    """Delete everything of the run, and prove it.

    First it brings home what storage has of the run, as pull does, and of a run that has not finished its newest
    checkpoint too. If that fails, nothing is deleted. Like rm -f: a run that is not there is no error. Afterwards it
    looks again and says what is left.
    """
    from cloudtrain import render, runs
    from cloudtrain.workflow import down as workflow

    target = call.find_target()
    with call.opened(target) as ctx:
        destination = _destination(call, target)
        result = workflow.down(ctx, target.run, destination, discard=discard, network_watcher=network_watcher)
    if result.left:
        return call.done(result, render.down, workflow.left_behind(result))
    runs.forget(call.home, target.cloud, target.run)
    return call.done(result, render.down)


@verb(app, PLACE, SPEAKING, name="list")
def list_runs(call: Call) -> Outcome:
    """List the runs of the subscription."""
    from cloudtrain import config, render
    from cloudtrain.workflow import list_runs as workflow

    directory = Path.cwd()
    table = {} if call.cloud else config.read(directory)
    target = config.target_cloud(table, call.cloud, call.subscription, directory)
    with call.opened(target) as ctx:
        result = workflow.list_runs(ctx)
        for note in _elsewhere(call, target.cloud):
            ctx.progress.note(note)
    return call.done(result, render.list_runs)


def _elsewhere(call: Call, cloud: str) -> list[str]:
    """What `list` did not look at, though this machine knows runs there."""
    from cloudtrain import runs
    from cloudtrain.spec import CLOUDS

    others = []
    for other in CLOUDS:
        names = runs.known_runs(call.home, other) if other != cloud else []
        if names:
            others.append(f"cloudtrain list --cloud {other}  shows what runs there (known: {', '.join(names)}).")
    return others


@verb(emulator_app, SPEAKING, name="status")
def emulator_status(call: Call) -> Outcome:
    """Show what the embedded Azure holds."""
    from cloudtrain import render
    from cloudtrain.azure.session import embedded_azure, emulator_errors
    from cloudtrain.clock import SystemClock

    emulator = embedded_azure(call.home, SystemClock())
    try:
        with emulator_errors():
            fields = emulator.status()
    finally:
        emulator.close()
    return call.done(fields, render.emulator)


@verb(emulator_app, SPEAKING, name="node")
def emulator_node(
    call: Call,
    base: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="Debian or Ubuntu to build on.  [debootstrap makes it]", show_default=False),
    ] = None,
) -> Outcome:
    """Build what full rehearsals run on, ahead of time.

    up --machine container builds it where it is missing, on the base that was named here last.
    """
    from cloudtrain import render
    from cloudtrain.azure.session import build_node
    from cloudtrain.clock import SystemClock

    with call.displayed() as display:
        image = build_node(call.home, SystemClock(), display, base)
    return call.done({"image": image}, render.emulator)


@verb(emulator_app, SPEAKING, name="reset")
def emulator_reset(
    call: Call,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Then be a brand-new subscription: nothing registered, 3 Spot cores.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> Outcome:
    """End every VM of the rehearsals, remove all."""
    from cloudtrain import render, runs
    from cloudtrain.azure.session import emulator_errors

    if not yes:
        _confirm("This ends every rehearsal and removes their VMs and disks.")
    for machine in _machines_to_reset(call.home):
        emulator = _emulator_at_any_rate(call.home, machine)
        try:
            with emulator_errors():
                emulator.reset(fresh=fresh)
                fields = emulator.status()
        finally:
            emulator.close()
    for name in runs.known_runs(call.home, "embedded"):
        runs.forget(call.home, "embedded", name)
    return call.done(fields, render.emulator)


def _machines_to_reset(home: Path) -> list[str | None]:
    """First the kind that is in use, then whatever may be left of others; at last it is processes again."""
    from cloudtrain.azure.session import used_machines

    return [None, *used_machines(home)]


def _emulator_at_any_rate(home: Path, machine: str | None) -> Any:
    """The embedded Azure, with an empty database where the one it has cannot be read. VMs are found by their disks."""
    from cloudtrain.azure.session import embedded_azure
    from cloudtrain.clock import SystemClock

    try:
        return embedded_azure(home, SystemClock(), machine=machine)
    except CloudtrainError as error:
        if error.code != "DamagedStore":
            raise
    from cloudtrain.emulator import store

    store.remove(home / "emulator")
    return embedded_azure(home, SystemClock(), machine=machine)


def _somebody_is_here() -> bool:
    """Whether a question can be asked and answered."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _answered_yes(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _confirm(warning: str) -> None:
    """Ask on a terminal; elsewhere nobody can answer."""
    if not _somebody_is_here():
        raise usage(f"{warning} Nobody is here to confirm it: add --yes.", "emulator reset")
    if not _answered_yes(f"{warning} Go on?"):
        raise CloudtrainError("NotConfirmed", "Nothing was removed.")


@verb(emulator_app, SPEAKING, name="serve")
def emulator_serve(
    call: Call,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1.  [a free one]", show_default=False)
    ] = 0,
) -> int:
    """Serve the embedded Azure to other programs.

    On this machine only, behind a random bearer token, until Ctrl-C. Its VMs stay.
    """
    from cloudtrain import render
    from cloudtrain.azure.session import embedded_azure
    from cloudtrain.clock import SystemClock
    from cloudtrain.emulator import serve

    with ExitStack() as closing:
        emulator = embedded_azure(call.home, SystemClock())
        closing.callback(emulator.close)
        try:
            app = serve.telling(emulator, _tell) if call.verbosity else emulator
            url = closing.enter_context(serve.listening(app, port))
        except serve.PortUnavailable as error:
            raise CloudtrainError(
                "PortUnavailable",
                f"Port {port} of this machine cannot be used: {error}.",
                "cloudtrain emulator serve  without --port takes a free one.",
                Exit.USAGE,
            ) from None
        with serve.until_interrupted() as interrupted:
            where = {"url": url, "token": emulator.token, "subscription": emulator.subscription_id}
            write(render.event("serving", **where) + "\n" if call.as_json else render.serving(**where))
            interrupted.wait()
    return Exit.DONE


def _tell(line: str) -> None:
    from cloudtrain.display import clean

    print(clean(line).replace("\n", " "), file=sys.stderr, flush=True)


@verb(emulator_app, PROGRESS, name="shell")
def emulator_shell(call: Call) -> int:
    """Practise Azure's own az on the embedded Azure.

    Opens your shell, in which az is signed in to the embedded Azure and to nothing else, or runs a command there:
    cloudtrain emulator shell -- az group list
    """
    from cloudtrain.azure.session import embedded_azure
    from cloudtrain.clock import SystemClock
    from cloudtrain.emulator import shell

    with ExitStack() as closing:
        emulator = embedded_azure(call.home, SystemClock())
        closing.callback(emulator.close)
        with call.displayed() as display:
            try:
                with display.step("signing az in to the embedded Azure", "about 5 s"):
                    environment = closing.enter_context(shell.signed_in(emulator))
            except shell.AzMissing:
                raise CloudtrainError(
                    "AzMissing",
                    "There is no 'az' (Azure's own command line) on your PATH.",
                    "pip install azure-cli  installs it, best into a virtual environment of its own.",
                    Exit.USAGE,
                ) from None
            except shell.SignInFailed as error:
                raise CloudtrainError("SignInFailed", f"az could not sign in to the embedded Azure: {error}") from None
            if not call.arguments:
                display.note("Here az works on the embedded Azure alone.  exit  leaves this shell.")
        try:
            return shell.run(call.arguments or (), environment)
        except FileNotFoundError as error:
            raise usage(f"There is no command '{error.filename}'.", call.command) from None


app.add_typer(emulator_app, name="emulator", help="Look after the embedded Azure of the rehearsals.")


def main() -> NoReturn:
    """The console's entry."""
    sys.exit(run(app, sys.argv[1:]))
