"""What a workflow asks of the guest: begin training, save, tell where it stands, hand over a log.

All reading goes through `observe`. What the guest says is only information: Azure's power state decides what a VM is.
"""

import base64
import codecs
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from cloudtrain import guest
from cloudtrain.azure import group as groups
from cloudtrain.azure import names, run_command
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group, Intent, LastProgress
from cloudtrain.azure.run_command import GuestUnreachable
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import Blocks, CloudtrainError, Exit, Refused
from cloudtrain.guest import GuestSettings, Observation, StartOutcome
from cloudtrain.image import ImageError, pull_login
from cloudtrain.lifecycle import durable
from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.durable import Access
from cloudtrain.lifecycle.results import Training
from cloudtrain.together import together

# A first start pulls an image of several GB and downloads the data set.
START_SECONDS = 5400
START_COMMAND = "cloudtrain-start"
SAVE_SECONDS = 60
Result = TypeVar("Result")
# The installing script's exit codes.
TRAINING_FAILED, TIME_WAS_UP = 5, 124


class TrainingFailed(CloudtrainError):
    def __init__(self, run: str, said: str) -> None:
        super().__init__(
            "TrainingFailed",
            f"Training failed on the VM.\n{said}",
            f"cloudtrain logs {run} --source container  shows all of it. The VM bills until  cloudtrain down {run}.",
            Exit.TRAINING_FAILED,
        )


@dataclass(frozen=True)
class Outcome:
    """seen: how training was seen to be under way: 'progress', 'container' or 'finished'."""

    seen: str
    training: Training


def begin(
    ctx: Context,
    group: Group,
    vm: Vm | None = None,
    access: Access | None = None,
    secrets: Mapping[str, str] | None = None,
) -> Outcome:
    """Install the guest's files and settings, start training if it does not run, and wait until it is under way.

    access: how that VM reaches the blobs, secrets: their values by name; None leaves what the VM has.
    Raises TrainingFailed, GuestUnreachable, Refused."""
    try:
        outcome, tags = _start_and_let_in(ctx, group, vm, access, secrets)
    except GuestUnreachable as error:
        raise _of_the_vm(ctx, group, error) from error
    training, at = _of_start(outcome), outcome.time
    if training.finished:
        seen = observe(ctx, group)
        training, at = of(seen), seen.time
    remember(ctx, group, training, at, tags)
    return Outcome(outcome.seen, training)


def _start_and_let_in(
    ctx: Context, group: Group, vm: Vm | None, access: Access | None, secrets: Mapping[str, str] | None
) -> tuple[StartOutcome, dict[str, str]]:
    """Roles are assigned while training starts. Returns what the group's tags are to say of the VM's access."""
    protected = {**_pull_login(ctx, group.spec.image), **_secrets(secrets)}
    if vm is None or access is None:
        _note_asked(ctx, group, {})
        return _start(ctx, group, protected, ends_itself=group.ends_itself), {}
    way = durable.for_vm(ctx, group, vm, access)
    _note_asked(ctx, group, way.tags)
    protected |= way.protected
    ends = way.by_identity and group.spec.when_done != "keep"
    outcome, is_in, may_end = together(
        lambda: _start(ctx, group, protected, ends_itself=ends),
        lambda: durable.let_in(ctx, vm, way),
        lambda: ends and durable.let_end(ctx, group, vm),
    )
    if not is_in:
        way = durable.by_signature(ctx, group, way.storage)
        durable.deliver(ctx, group, way.protected)
    return outcome, {**way.tags, groups.TAG_ENDS: "true" if may_end else "false"}


def _note_asked(ctx: Context, group: Group, access: Mapping[str, str]) -> None:
    """Before the VM is told to train: whoever waits for its first step may be killed, and it trains all the same."""
    tags = {groups.TAG_ASKED: "true", **access}
    if tags.items() - group.tags.items():
        groups.set_tags(ctx.session, group, tags)


def _secrets(values: Mapping[str, str] | None) -> dict[str, str]:
    if not values:
        return {}
    return {guest.SECRETS: base64.b64encode(msgspec.json.encode(dict(values))).decode()}


def _start(ctx: Context, group: Group, protected: Mapping[str, str], *, ends_itself: bool) -> StartOutcome:
    nonce = run_command.new_nonce()
    with ctx.progress.step("training", usually="2 to 10 minutes on Azure") as step:
        output = run_command.run(
            ctx.session,
            group,
            ctx.clock,
            name=START_COMMAND,
            script=guest.install_script(_settings(ctx, group, ends_itself), nonce, timeout=START_SECONDS),
            timeout_seconds=START_SECONDS + 300,
            on_output=lambda text: _show(step.update, text),
            protected=protected,
        )
        return _started(group, output, nonce)


def _of_the_vm(ctx: Context, group: Group, error: GuestUnreachable) -> CloudtrainError:
    """A guest falls silent where its VM went away: then that is what the user has to hear."""
    vm = vms.find(ctx.session, group)
    if vm is not None and vm.power is PowerState.RUNNING:
        return error
    return Refused(
        "VmNotRunning",
        f"The VM of run '{group.run}' is {vm.power if vm else 'gone'} before training was under way: Azure evicted it, "
        "or somebody stopped it.",
        f"cloudtrain up {group.run}  starts it again and goes on.",
        Blocks.NOTHING,
    )


def _pull_login(ctx: Context, image: str) -> dict[str, str]:
    """The right to pull a private image, as the installing script takes it; on a VM that has it, it stays."""
    if not ctx.session.capabilities.published_images:
        return {}
    try:
        login = pull_login(image)
    except ImageError as error:
        ctx.progress.note(f"{error.message}. The VM tries without a login.")
        return {}
    return {guest.PULL_LOGIN: base64.b64encode(login.encode()).decode()} if login else {}


def save_and_stop(ctx: Context, group: Group) -> int | None:
    """Ask the trainer to save and end; returns the step of its newest checkpoint, None where it is not known."""
    nonce = run_command.new_nonce()
    with ctx.progress.step("saving", usually="20 to 40 s on Azure"):
        output = run_command.run(
            ctx.session,
            group,
            ctx.clock,
            name=f"cloudtrain-save-{nonce}",
            script=guest.save_and_stop_script(nonce, wait_seconds=SAVE_SECONDS),
            timeout_seconds=SAVE_SECONDS * 3,
        )
        stopped = _parsed(guest.parse_stop, output, nonce)
    seen = observe(ctx, group)
    if group.trained or seen.container is not None or seen.finished:
        remember(ctx, group, of(seen), seen.time)
    return stopped.saved_step


def observe(
    ctx: Context, group: Group, *, log: str | None = None, offset: int = 0, identity: str = "", events: int = -2048
) -> Observation:
    """One look at the guest. Raises GuestUnreachable, Refused (the VM is not running)."""
    nonce = run_command.new_nonce()
    output = run_command.run(
        ctx.session,
        group,
        ctx.clock,
        # A name of its own: a second run under the same name would kill the first, of another command perhaps.
        name=f"cloudtrain-observe-{nonce}",
        script=guest.observe_script(nonce, log=log, offset=offset, identity=identity, events_offset=events),
    )
    return _parsed(guest.parse_observation, output, nonce)


def of(seen: Observation) -> Training:
    """What an observation says of training, in the words of every result."""
    progress, container = seen.progress, seen.container
    return Training(
        under_way=bool(container and container.running),
        step=progress.step if progress else None,
        total_steps=progress.total_steps if progress else None,
        epoch=progress.epoch if progress else None,
        epochs=progress.epochs if progress else None,
        resumed_from_step=progress.resumed_from_step if progress else None,
        resumes=progress.resumes if progress else None,
        saved_step=progress.saved_step if progress else None,
        finished=seen.finished,
        failed=seen.failed is not None,
        exit_code=container.exit_code if container else None,
        metrics=progress.metrics if progress else {},
        examples_per_second=progress.examples_per_second if progress else None,
        eta_seconds=progress.eta_seconds if progress else None,
        digest=progress.digest if progress else None,
    )


def dated(seen: Observation) -> Training:
    """As `of`, of an observation that may be some seconds old."""
    return msgspec.structs.replace(of(seen), as_of=_iso(seen.time))


def remember(ctx: Context, group: Group, training: Training, at: float, more: Mapping[str, str] | None = None) -> None:
    """Keep with the group what was seen: that its disk holds work, how far it was, and whether the run is finished.
    at: epoch seconds of the guest, whose clock also dates what it writes to storage. more: other tags of the same
    write."""
    tags = {**(more or {}), groups.TAG_TRAINED: "true", **groups.progress_tags(_remembered(training, at))}
    if training.finished:
        tags[groups.TAG_INTENT] = Intent.FINISHED.value
    elif group.intent is Intent.FINISHED:
        # Changed arguments made a finished run go on.
        tags[groups.TAG_INTENT] = Intent.RUNNING.value
    groups.set_tags(ctx.session, group, tags)


class LogReader:
    """Reads a log on from where it was read to, over rotations and restarts of the VM."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.total = 0  # bytes handed over so far
        self.seen: Observation | None = None  # the guest, when it was last read
        self._offset, self._identity = 0, ""
        self._saw_end = False
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, ctx: Context, group: Group, emit: Callable[[str], None]) -> bool:
        """Hand over all there is now; True once training has ended and everything was read."""
        while True:
            seen = self.seen = observe(ctx, group, log=self.source, offset=self._offset, identity=self._identity)
            chunk = seen.log
            if chunk is not None:
                self._offset, self._identity = chunk.next, chunk.identity
                self.total += len(chunk.data)
                emit(self._text.decode(chunk.data))
            if chunk is None or not chunk.more:
                break
        # What was written between the look at the state and the look at the log is read once more.
        ended, self._saw_end = self._saw_end, seen.finished or seen.failed is not None
        return ended

    def end(self, emit: Callable[[str], None]) -> None:
        """Hand over the rest of a character that was cut off for good."""
        if rest := self._text.decode(b"", True):
            emit(rest)


def _settings(ctx: Context, group: Group, ends_itself: bool) -> GuestSettings:
    spec = group.spec
    ours = spec.built_from == "trainer" or spec.image == ctx.session.defaults.trainer_image
    return GuestSettings(
        run=group.run,
        generation=group.generation,
        vm_name=names.vm(group.run, group.generation),
        image=spec.image,
        mount=spec.mount,
        arguments=spec.arguments,
        environment=spec.env,
        secrets=spec.secrets,
        when_done=spec.when_done,
        vm_id=durable.vm_id(group) if ends_itself else "",
        gpus=has_gpu(group.place.size),
        # Of our own trainer it is known, so that a slow start is waited for; any other image shows what it does.
        writes_progress=True if ours else None,
        # Whoever reads storage judges by it how old is too old.
        tuning={"publish_seconds": ctx.session.capabilities.publish_seconds},
    )


def has_gpu(size: str) -> bool:
    """Azure's GPU families are those whose name begins with N: NC, ND, NG, NV."""
    return size.removeprefix("Standard_").upper().startswith("N")


def _show(update: Callable[[str], None], text: str) -> None:
    for line in text.splitlines():
        if line and not line.startswith("cloudtrain-"):
            update(line)


def _started(group: Group, output: str, nonce: str) -> StartOutcome:
    outcome = _parsed(guest.parse_start, output, nonce)
    if outcome.rc == 0:
        return outcome
    said = "\n".join(outcome.text[-25:])
    if outcome.rc == TRAINING_FAILED:
        raise TrainingFailed(group.run, said)
    if outcome.rc == TIME_WAS_UP:
        raise GuestUnreachable(f"Training did not get under way within {START_SECONDS / 60:.0f} minutes.\n{said}")
    raise GuestUnreachable(f"Training could not be started on the VM.\n{said}")


def _parsed(parse: Callable[[str, str], Result], output: str, nonce: str) -> Result:
    try:
        return parse(output, nonce)
    except guest.IncompleteOutput as error:
        raise GuestUnreachable(f"A command on the VM did not run to its end: {error}") from error


def _of_start(outcome: StartOutcome) -> Training:
    return Training(
        under_way=outcome.seen != "finished",
        finished=outcome.seen == "finished",
        step=outcome.step,
        total_steps=outcome.total_steps,
        epoch=outcome.epoch,
        epochs=outcome.epochs,
        resumed_from_step=outcome.resumed_from_step,
    )


def _remembered(training: Training, at: float) -> LastProgress:
    return LastProgress(
        at=_iso(at),
        step=training.step,
        total=training.total_steps,
        epoch=training.epoch,
        saved=training.saved_step,
        finished=training.finished,
        failed=training.failed,
        exit_code=training.exit_code,
    )


def _iso(at: float) -> str:
    # With seconds alone, what was written before in the same second would pass for newer.
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
