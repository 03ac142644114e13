"""One invocation of the command line: the options every verb takes, and how it ends, whatever happens."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloudtrain.errors import CloudtrainError, Exit

# Whatever costs more than a few milliseconds to import is imported where it is needed: --help and --version are
# answered without an SDK.
if TYPE_CHECKING:
    from cloudtrain.config import Target
    from cloudtrain.display import Display
    from cloudtrain.lifecycle.context import Context

# typer exports only this leaf of click's errors (and carries its own copy of click since 0.26): the class above it
# is UsageError, the one above that ClickException.
_CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
# A run's name holds none of these characters.
_CAN_BE_NETWORK = re.compile(r".*[.:*/].*|caller|none")
# What a shell sees of a command that SIGPIPE ended.
_BROKEN_PIPE = 141

RunName = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="The run's name. Default: run in cloudtrain.toml, else this directory's name.",
        show_default=False,
    ),
]
Cloud = Annotated[
    str | None,
    typer.Option(metavar="embedded|azure", help="The embedded Azure (a rehearsal) or Azure.", show_default=False),
]
Subscription = Annotated[
    str | None,
    typer.Option(metavar="ID", help="The Azure subscription.  [AZURE_SUBSCRIPTION_ID]", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Tell more; -vv: tracebacks and requests too.")
]
PROGRESS: dict[str, tuple[Any, Any]] = {"quiet": (Quiet, False), "verbosity": (Verbose, 0)}
SPEAKING: dict[str, tuple[Any, Any]] = {"as_json": (Json, False)} | PROGRESS
PLACE: dict[str, tuple[Any, Any]] = {"cloud": (Cloud, None), "subscription": (Subscription, None)}
RUN: dict[str, tuple[Any, Any]] = {"run": (RunName, None)}


class StdoutClosed(Exception):
    """Whoever read our standard output has gone."""


@dataclass
class Outcome:
    """How a verb ended: its result as JSON's types, the lines for a person, and what was wrong all the same."""

    data: object
    lines: list[str] = field(default_factory=list)
    error: CloudtrainError | None = None


@dataclass
class Call:
    """What the user said besides a verb's own options, and what is known of the run by now.

    arguments: what stood after `--`, None without one. target: set once the verb knows it.
    """

    arguments: tuple[str, ...] | None = None
    command: str = ""
    run: str | None = None
    cloud: str | None = None
    subscription: str | None = None
    as_json: bool = False
    quiet: bool = False
    verbosity: int = 0
    target: "Target | None" = None

    @property
    def home(self) -> Path:
        from cloudtrain.paths import home

        return home()

    def find_target(self) -> "Target":
        """Which run, on which cloud: from the command line, the index, the file. Raises CloudtrainError."""
        from cloudtrain import config, runs

        directory = Path.cwd()
        table = {} if self.run and self.cloud else config.read(directory)
        return self.aim(
            config.target(
                table,
                run=self.run,
                cloud=self.cloud,
                subscription_flag=self.subscription,
                directory=directory,
                clouds_of=lambda run: runs.clouds_of(self.home, run),
            )
        )

    def aim(self, target: "Target") -> "Target":
        """From now on the outcome can name the run."""
        self.target, self.run = target, target.run
        return target

    @contextmanager
    def opened(self, target: "Target", machine: str | None = None) -> Iterator["Context"]:
        """The context of a workflow: a session on the target's cloud, the clock, and the display.

        machine: what a rehearsal's VMs are to be; None: as they are."""
        from cloudtrain.azure.session import open_session
        from cloudtrain.clock import SystemClock
        from cloudtrain.lifecycle.context import Context

        _listen_to_requests(self.verbosity)
        clock = SystemClock()
        with (
            self.displayed() as display,
            open_session(
                target.cloud, home=self.home, clock=clock, subscription=target.subscription, machine=machine
            ) as session,
        ):
            for note in target.notes:
                display.note(note)
            yield Context(session, clock, display)

    @contextmanager
    def displayed(self) -> Iterator["Display"]:
        from cloudtrain.display import open_display

        display = open_display(quiet=self.quiet, verbose=self.verbosity > 0)
        try:
            yield display
        finally:
            display.close()

    def done(self, result: Any, lines: Callable[..., list[str]], error: CloudtrainError | None = None) -> Outcome:
        """The outcome of a workflow's result. lines: what of `render` shows it to a person."""
        import msgspec

        from cloudtrain import render

        text = [] if self.as_json else lines(render.cleaned(result), render.paint_for(sys.stdout))
        return Outcome(msgspec.to_builtins(result), text, error)


def _listen_to_requests(verbosity: int) -> None:
    """-vv: every request to the cloud, as azure-core logs it (without secrets); else none of its warnings, which
    come back as errors."""
    import logging

    if verbosity >= 2:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    else:
        logging.getLogger("azure").addHandler(logging.NullHandler())


# An exit code alone: the verb has told the user itself.
Verb = Callable[..., "Outcome | int"]


def verb(app: typer.Typer, *common: dict[str, tuple[Any, Any]], name: str = "") -> Callable[[Verb], Verb]:
    """Makes `function(call, own options...)` a command; its docstring is the help.

    common: options of every verb, kept in the `Call`: name -> (annotation, default).
    """
    shared = {key: value for group in common for key, value in group.items()}

    def register(function: Verb) -> Verb:
        def command(context: typer.Context, **given: Any) -> Outcome | int:
            call: Call = context.obj
            call.command = " ".join(context.command_path.split()[1:])
            for key in shared:
                setattr(call, key, given.pop(key))
            _refuse_stray_arguments(call)
            return function(call, **given)

        _sign(command, function, shared)
        app.command(name or function.__name__.replace("_", "-"), help=function.__doc__)(command)
        return function

    return register


def _sign(command: Verb, function: Verb, shared: dict[str, tuple[Any, Any]]) -> None:
    """Give `command` the signature that typer reads its options from: the function's own ones, then the shared."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [one.replace(kind=keyword) for one in list(inspect.signature(function).parameters.values())[1:]]
    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *own,
        *(inspect.Parameter(key, keyword, annotation=kind, default=value) for key, (kind, value) in shared.items()),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}


def _refuse_stray_arguments(call: Call) -> None:
    if call.arguments is not None and call.command not in ("up", "ssh", "emulator shell"):
        raise usage("Arguments after -- go to the trainer, and only up takes them (of ssh: a command).", call.command)


def usage(message: str, command: str) -> CloudtrainError:
    """Wrong use of the command line."""
    return CloudtrainError("Usage", message, f"cloudtrain {command} --help".replace("  ", " "), Exit.USAGE)


def write(text: str) -> None:
    """To standard output, at once. Raises StdoutClosed when nobody reads it any more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise StdoutClosed from error


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line to its end; whatever happens is told as the user asked for it. Returns the exit code."""
    arguments, after = _split(list(arguments))
    call = Call(arguments=after, as_json="--json" in arguments)
    arguments = _with_ssh_spelt_out(arguments)
    for stream in (sys.stdout, sys.stderr):
        # A log may hold what this terminal's encoding lacks.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _told(call, _outcome(call, app, arguments))
        write("")
        return code
    except StdoutClosed:
        # Python flushes standard output once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _BROKEN_PIPE


def _split(arguments: list[str]) -> tuple[list[str], tuple[str, ...] | None]:
    if "--" not in arguments:
        return arguments, None
    at = arguments.index("--")
    return arguments[:at], tuple(arguments[at + 1 :])


def _with_ssh_spelt_out(arguments: list[str]) -> list[str]:
    """`--ssh` may stand alone, which typer knows of no option: what follows is its value only if it can be one."""
    return [
        "--ssh=caller" if argument == "--ssh" and not _CAN_BE_NETWORK.fullmatch(after) else argument
        for argument, after in pairwise([*arguments, ""])
    ]


def _outcome(call: Call, app: typer.Typer, arguments: list[str]) -> Outcome | int:
    """What the verb answered, or why it did not; an exit code alone where the user has been told."""
    try:
        command = typer.main.get_command(app)
        answer = command.main(arguments, prog_name="cloudtrain", standalone_mode=False, obj=call)
    except CloudtrainError as error:
        _trace(call)
        return Outcome(None, error=error)
    except _CLICK_ERROR as error:
        return _misused(call, arguments, error)
    except (KeyboardInterrupt, typer.Abort):
        return Outcome(None, error=_interrupted(call))
    except StdoutClosed:
        raise
    except OSError as error:
        _trace(call)
        return Outcome(None, error=_machine_trouble(call, error))
    except Exception as error:  # noqa: BLE001  # the last resort: told in one line, with the way to the traceback
        _trace(call)
        return Outcome(None, error=_unexpected(error))
    if answer == Exit.INTERRUPTED:
        return Outcome(None, error=_interrupted(call))
    return answer if isinstance(answer, Outcome) else int(answer or 0)


def _misused(call: Call, arguments: list[str], error: Any) -> Outcome | int:
    if type(error).__name__ == "NoArgsIsHelpError":
        if not call.as_json:
            print(error.format_message(), file=sys.stderr)
            return Exit.USAGE
        return Outcome(None, error=usage("No command was given.", call.command))
    path = error.ctx.command_path.split()[1:] if getattr(error, "ctx", None) else []
    call.command = call.command or " ".join(path)
    return Outcome(None, error=usage(error.format_message(), call.command))


def _interrupted(call: Call) -> CloudtrainError:
    run = call.run
    if not run or call.target is None:
        return CloudtrainError("Interrupted", "Interrupted.", "", Exit.INTERRUPTED)
    if call.command in ("status", "logs"):
        return CloudtrainError(
            "Interrupted",
            f"Interrupted; the run '{run}' goes on.",
            f"cloudtrain status {run}  shows it.",
            Exit.INTERRUPTED,
        )
    if call.command == "pull":
        return CloudtrainError(
            "Interrupted",
            "Interrupted; what has arrived stays.",
            f"cloudtrain pull {run}  goes on from there.",
            Exit.INTERRUPTED,
        )
    place = " --cloud azure" if call.command == "up" and call.target.cloud == "azure" else ""
    return CloudtrainError(
        "Interrupted",
        f"Interrupted; the run '{run}' stays as it is, and what Azure has begun goes on.",
        f"cloudtrain status {run}  shows it; cloudtrain {call.command} {run}{place}  goes on from there.",
        Exit.INTERRUPTED,
    )


def _machine_trouble(call: Call, error: OSError) -> CloudtrainError:
    import errno

    where = f" ({error.filename})" if error.filename else ""
    hints = {
        errno.ENOSPC: "Free some space, then run the same command again.",
        errno.EDQUOT: "Free some space, then run the same command again.",
        errno.EACCES: "CLOUDTRAIN_HOME=DIRECTORY  lets cloudtrain keep its files elsewhere.",
        errno.EEXIST: "CLOUDTRAIN_HOME=DIRECTORY  lets cloudtrain keep its files elsewhere.",
        errno.ENOTDIR: "CLOUDTRAIN_HOME=DIRECTORY  lets cloudtrain keep its files elsewhere.",
        errno.EROFS: "CLOUDTRAIN_HOME=DIRECTORY  lets cloudtrain keep its files elsewhere.",
    }
    return CloudtrainError(
        "LocalMachine",
        f"This machine refused: {error.strerror or error}{where}.",
        hints.get(error.errno or 0, f"cloudtrain {call.command} -vv  shows where."),
    )


def _unexpected(error: Exception) -> CloudtrainError:
    what = " ".join(str(error).split())
    return CloudtrainError(
        "Unexpected",
        f"cloudtrain met something it does not know: {type(error).__name__}" + (f": {what}" if what else ""),
        "Run it again with -vv for the traceback.",
    )


def _trace(call: Call) -> None:
    if call.verbosity >= 2:
        import traceback

        traceback.print_exc()


def _told(call: Call, outcome: Outcome | int) -> int:
    """Tell the outcome: the envelope on standard output, or lines there and errors on standard error."""
    if isinstance(outcome, int):
        return outcome
    from cloudtrain import render

    errors = outcome.error.each if outcome.error else []
    if call.as_json:
        write(render.envelope(call.command, call.run, outcome.data, errors) + "\n")
    else:
        write("".join(line + "\n" for line in outcome.lines))
        for error in errors:
            print(render.error_text(error, render.paint_for(sys.stderr)), file=sys.stderr)
    return int(outcome.error.exit_code) if outcome.error else Exit.DONE
