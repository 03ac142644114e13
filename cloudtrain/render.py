"""Every result as a person reads it, and the JSON envelope. No result is printed anywhere else."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from cloudtrain.display import clean, duration, is_terminal, size
from cloudtrain.errors import CloudtrainError

if TYPE_CHECKING:
    from typing import TextIO

    from cloudtrain.emulator.faults import Faults, Rule
    from cloudtrain.emulator.settings import Settings, Shortage
    from cloudtrain.lifecycle.money import MoneyInfo
    from cloudtrain.lifecycle.results import Training, VmInfo
    from cloudtrain.workflow.doctor import DoctorResult
    from cloudtrain.workflow.down import DownResult
    from cloudtrain.workflow.history import HistoryEntry, HistoryResult
    from cloudtrain.workflow.list_runs import ListResult
    from cloudtrain.workflow.plan import Plan
    from cloudtrain.workflow.pull import PullResult
    from cloudtrain.workflow.restart import RestartResult
    from cloudtrain.workflow.simulate_eviction import EvictionResult
    from cloudtrain.workflow.status import StatusResult
    from cloudtrain.workflow.stop import StopResult
    from cloudtrain.workflow.up import UpResult
    from cloudtrain.workflow.watch import WatchLine

# Number of the envelope's contract: changes only when a field changes its meaning or goes.
ENVELOPE = 1

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_STATE_STYLES = {
    "running": "green",
    "finished": "green",
    "provisioning": "cyan",
    "stopped": "yellow",
    "evicted": "yellow",
    "failed": "red",
}
Paint = Callable[[str, str], str]
Row = tuple[str, str]
T = TypeVar("T")


def envelope(command: str, run: str | None, data: object, errors: Sequence[CloudtrainError]) -> str:
    """The one JSON object that a command answers with `--json`, on one line."""
    return json.dumps(
        {
            "cloudtrain_result": ENVELOPE,
            "command": command,
            "run": run or None,
            "ok": not errors,
            "data": data,
            "errors": [_as_json(error) for error in errors],
        }
    )


def _as_json(error: CloudtrainError) -> dict[str, str]:
    told = {"code": error.code, "message": error.message, "hint": error.hint}
    return told if error.blocks is None else told | {"blocks": error.blocks.value}


def event(kind: str, **fields: object) -> str:
    """One line of what `--json` streams before the envelope: an object with `cloudtrain_event`."""
    return json.dumps({"cloudtrain_event": ENVELOPE, "event": kind, **fields})


def paint_for(stream: "TextIO") -> Paint:
    """Colours on a terminal, unless NO_COLOR is set (no-color.org); plain text elsewhere."""
    if not is_terminal(stream) or os.environ.get("NO_COLOR"):
        return lambda text, style: text
    return lambda text, style: f"\x1b[{_CODES[style]}m{text}\x1b[0m" if style in _CODES else text


def error_text(error: CloudtrainError, paint: Paint) -> str:
    """What happened and why; then what to run next."""
    text = paint("error: ", "red") + clean(error.message)
    return f"{text}\n{paint('next:  ', 'cyan')}{clean(error.hint)}" if error.hint else text


def cleaned(result: T) -> T:
    """The same result, every text in it without what steers a terminal: a guest wrote some of them."""
    import msgspec

    return msgspec.convert(_clean_tree(msgspec.to_builtins(result)), type(result))


def _clean_tree(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple):
        return [_clean_tree(item) for item in value]
    if isinstance(value, Mapping):
        return {clean(str(key)): _clean_tree(item) for key, item in value.items()}
    return value


def up(result: "UpResult", paint: Paint) -> list[str]:
    run = result.run
    lines = [_headline(run, result.state, paint)]
    rows = [*_vm_rows(result.vm), *_training_rows(result.training), ("resource group", result.resource_group)]
    lines += _labelled(rows, paint)
    if result.seen == "container":
        lines.append("The trainer's container stays up; its image writes no progress, so no step was seen.")
    if result.state != "running":
        return lines + _next(paint, *_next_of_state(run, result.state, result.vm))
    return lines + _next(
        paint,
        (f"cloudtrain status {run}", "how far it is"),
        (f"cloudtrain logs -f {run}", "its journal, as it grows"),
        (f"cloudtrain simulate-eviction {run}", "take the VM away, see it resume"),
        (f"cloudtrain down {run}", "remove every trace"),
    )


_CHECK_STYLES = {"passed": "green", "failed": "red", "unknown": "yellow"}
_KINDS = {
    "Microsoft.Resources/resourceGroups": "resource group",
    "Microsoft.Network/networkSecurityGroups": "network security group",
    "Microsoft.Network/virtualNetworks": "virtual network",
    "Microsoft.Storage/storageAccounts": "storage account",
    "Microsoft.Compute/virtualMachines": "Spot VM",
    "Microsoft.Network/networkInterfaces": "network interface",
    "Microsoft.Network/publicIPAddresses": "public address",
    "Microsoft.Compute/disks": "disk",
    "Microsoft.Compute/virtualMachines/runCommands": "RunCommand",
    "Microsoft.DevTestLab/schedules": "auto-shutdown",
    "Microsoft.Network/networkWatchers": "network watcher",
}


def plan(result: "Plan", paint: Paint) -> list[str]:
    lines = [f"{paint(result.run, 'bold')}: {_planned(result)}"]
    trainer = " ".join([result.image or "none named", *(_quoted(argument) for argument in result.arguments)])
    rows = [
        ("size", f"{result.hardware}; {result.eviction_policy} when evicted"),
        ("place", f"{result.location}, subscription {result.subscription}"),
        ("VM image", result.vm_image),
        ("trainer", trainer),
        *_recovery_plan(result),
        *_price_rows(result),
    ]
    lines += _labelled(rows, paint)
    lines += [f"  would change: {change}" for change in result.changes]
    if result.registers:
        lines.append(f"The subscription would be registered for {', '.join(result.registers)}.")
    if result.terms:
        lines.append(f"The VM image's terms have to be accepted (--accept-terms): {result.terms}")
    missing = [one for one in result.resources if not one.exists and not one.by_azure]
    if result.action == "create":
        lines.append("It would make:")
        lines += _labelled([(_KINDS[one.type], one.name) for one in missing], paint)
    lines += [
        f"Azure makes {one.name} by itself, free of charge, for the first network in a region."
        for one in result.resources
        if one.by_azure and not one.exists
    ]
    lines += [
        f"{paint('unknown', 'yellow')} {check.name}: {check.detail}"
        for check in result.checks
        if check.state == "unknown"
    ]
    return lines


def _planned(result: "Plan") -> str:
    what = {"create": "a new VM", "start": "its VM would be started", "none": "its VM runs already"}[result.action]
    return what if result.bills else f"{what}; a rehearsal, nothing is billed"


def _recovery_plan(result: "Plan") -> list[Row]:
    """Where the VM may be made instead."""
    words = [f"zone {zone}" for zone in result.zones] + result.other_sizes + result.other_locations
    if result.fallback:
        _, _, after = result.fallback.partition(":")
        words.append("at last on demand" + (f", once Spot has been in vain for {after}" if after else ""))
    return [("or else", ", ".join(words))] if words else []


def _price_rows(result: "Plan") -> list[Row]:
    price = result.price
    asked = f"{price.source}, asked {_when(price.at)}" if price.at else f"{price.source} did not answer"
    since = f"; Spot price since {price.spot_since[:10]}" if price.spot_since else ""
    a_day = "unknown" if price.most_a_day is None else f"at most {price.most_a_day:.2f} USD for the VM"
    if price.most_an_hour is not None:
        a_day += f" (24 h at {price.most_an_hour:g})"
    if price.spot is not None:
        a_day += f"; {24 * price.spot:.2f} USD at today's Spot price"
    rows = [
        ("Spot price", _dollars(price.spot)),
        ("on demand", _dollars(price.on_demand)),
        ("source", asked + since),
        ("a day", a_day),
    ]
    if result.max_duration or result.max_cost:
        limits = [duration(result.max_duration)] if result.max_duration else []
        limits += [f"{result.max_cost:g} USD"] if result.max_cost else []
        rows.append(("limits", f"{' or '.join(limits)}, kept by cloudtrain watch"))
    if result.besides:
        rows.append(("on top of it", "; ".join(result.besides)))
    return rows


def _dollars(price: float | None) -> str:
    return "unknown" if price is None else f"{price:g} USD an hour"


def doctor(result: "DoctorResult", paint: Paint) -> list[str]:
    width = max(len(check.name) for check in result.checks)
    lines = []
    for check in result.checks:
        state = paint(check.state.ljust(7), _CHECK_STYLES[check.state])
        lines.append(f"{state}  {check.name.ljust(width)}  {' '.join(check.detail.split())}")
        if check.fix:
            lines.append(f"{' ' * (width + 11)}{paint('fix:', 'cyan')} {check.fix}")
    if all(check.state != "failed" for check in result.checks):
        place = " --cloud azure" if result.cloud == "azure" else ""
        lines += _next(paint, (f"cloudtrain up {result.run}{place}", "makes the run"))
    return lines


def status(result: "StatusResult", paint: Paint) -> list[str]:
    lines = [_headline(result.run, result.state, paint)]
    rows = [*_vm_rows(result.vm)] if result.vm else [("VM", "none")]
    rows += _training_rows(result.training, result.source)
    rows += _recovery_rows(result)
    if result.money.hours:
        rows.append(("money", _money(result.money)))
    arguments = " ".join(_quoted(argument) for argument in result.arguments)
    rows += [("trainer", f"{result.image} {arguments}".rstrip()), ("resource group", result.resource_group)]
    lines += _labelled(rows, paint)
    if result.note:
        lines.append(result.note)
    lines += _next(paint, *_next_of_state(result.run, result.state, result.vm))
    bill = _bill(result.cloud, result.vm, result.run)
    return [*lines, paint(bill, "dim")] if bill else lines


def _recovery_rows(result: "StatusResult") -> list[Row]:
    seen = result.recovery
    words = []
    if seen.evictions or seen.refusals:
        words.append(_count(seen.evictions, "eviction"))
        if result.source in ("guest", "storage"):
            # Only the guest knows these.
            words += [f"{seen.with_notice} with notice", f"{_count(seen.steps_lost, 'step')} lost"]
    if seen.refusals:
        words.append(f"{_count(seen.refusals, 'start')} refused")
    if seen.next_attempt:
        words.append(f"next attempt {_when(seen.next_attempt)}")
    if not seen.watched:
        words.append("watchers are held back (tag cloudtrain-watch=off)")
    elif seen.watcher:
        words.append("a watcher looks after it")
    return [("recovery", ", ".join(words))] if words else []


def stop(result: "StopResult", paint: Paint) -> list[str]:
    saved = "" if result.saved_step is None else f", the newest checkpoint is at step {result.saved_step}"
    before = "The VM was deallocated before" if result.was == "deallocated" else "The VM is deallocated"
    lines = [_headline(result.run, result.state, paint), f"{before}{saved}. Its disk stays."]
    lines += _next(paint, *_next_of_state(result.run, result.state, None))
    if result.cloud == "azure":
        lines.append(paint("Its disk and its public address still bill.", "dim"))
    return lines


def restart(result: "RestartResult", paint: Paint) -> list[str]:
    lines = [_headline(result.run, result.state, paint), f"The VM was {result.action}."]
    lines += _labelled(_training_rows(result.training), paint)
    return lines + _next(paint, (f"cloudtrain logs -f {result.run}", "its journal, as it grows"))


def simulate_eviction(result: "EvictionResult", paint: Paint) -> list[str]:
    lines = [_headline(result.run, result.state, paint)]
    lines += _table(
        ("after", "what happened"),
        [(f"{entry.at_seconds:8.2f} s", entry.event) for entry in result.timeline],
        paint,
    )
    rows = [("notice", "none" if result.notice_seconds == 0 else _seconds(result.notice_seconds))]
    rows.append(("saved at", _step(result.saved_step)))
    rows.append(("resumed from", _step(result.resumed_step)))
    lines += _labelled(rows, paint)
    lines.append(_steps_lost(result, paint))
    if result.resumed_step is None and result.state in ("evicted", "stopped"):
        lines += _next(paint, (f"cloudtrain restart {result.run}", "brings it back"))
    return lines


def _steps_lost(result: "EvictionResult", paint: Paint) -> str:
    note = f" ({result.steps_lost_note})" if result.steps_lost_note else ""
    if result.steps_lost is None:
        return f"steps lost: unknown{note}"
    style = "green" if result.steps_lost == 0 else "yellow"
    return paint(f"steps lost: {result.steps_lost}", style) + note


def down(result: "DownResult", paint: Paint) -> list[str]:
    lines = []
    if result.pulled:
        files = _count(result.pulled.files, "file")
        lines.append(f"{result.run}: brought home {files} ({size(result.pulled.bytes)}) to {result.pulled.directory}")
    if result.deleted:
        lines.append(f"{result.run}: deleted {_count(len(result.deleted), 'resource')}.")
    elif not result.left:
        lines.append(f"There is nothing of a run '{result.run}' on {_place(result.searched)}: nothing to delete.")
    if result.left:
        lines.append(paint(f"Still there ({len(result.left)}):", "red"))
        lines += [f"  {resource}" for resource in result.left]
    elif result.deleted:
        lines.append(paint("Nothing of the run is left.", "green"))
    for resource in result.kept:
        lines.append(f"Kept: {resource}")
    if result.kept:
        lines.append(
            "Azure made it itself, other networks may share it, and it costs nothing; --network-watcher deletes it too."
        )
    for image in result.kept_images:
        lines.append(f"Kept: {image}")
        lines.append(
            "The image that up pushed, and its earlier versions, stay in their registry: other runs may use them."
        )
    return lines


def pull(result: "PullResult", paint: Paint) -> list[str]:
    run = result.run
    if not result.files:
        lines = [f"{run}: nothing lies in storage yet."]
        return [*lines, *_refused_names(result), *_next(paint, (f"cloudtrain status {run}", "how far it is"))]
    fetched = f"fetched {_count(result.fetched, 'file')} ({size(result.bytes)})" if result.fetched else "nothing new"
    unchanged = f", {result.unchanged} unchanged" if result.unchanged else ""
    lines = [f"{paint(run, 'bold')}: {fetched}{unchanged}; all verified.", f"They lie in {result.directory}"]
    rows = [(file.path, size(file.bytes)) for file in result.files[:_FILES_SHOWN]]
    lines += [f"  {line}" for line in _table(("file", "size"), rows, paint)]
    if len(result.files) > _FILES_SHOWN:
        lines.append(f"  and {len(result.files) - _FILES_SHOWN} more")
    lines += _refused_names(result)
    if result.complete:
        return lines + _next(paint, (f"cloudtrain down {run}", "remove every trace of the run; these files stay"))
    at = "" if result.step is None else f"; its newest checkpoint is at step {result.step}"
    told = f", as of {_when(result.as_of)}" if result.as_of else ""
    lines.append(f"The run has not finished, or not all of it is in storage{told}{at}.")
    return lines + _next(paint, (f"cloudtrain pull {run}", "later: what has changed by then"))


_FILES_SHOWN = 20


def _refused_names(result: "PullResult") -> list[str]:
    return [f"Not fetched, for it is no name of a file here: {name}" for name in result.refused]


def watch_line(line: "WatchLine", paint: Paint) -> str:
    state = paint(line.state, _STATE_STYLES.get(line.state, "bold"))
    return f"{_when(line.at)}  {line.run}: {state}; {line.text}"


def history(result: "HistoryResult", paint: Paint) -> list[str]:
    lines = [_headline(result.run, result.state, paint)]
    if result.earlier_events:
        lines.append(f"{_count(result.earlier_events, 'older event')} kept as sums only.")
    if result.events:
        rows = [(_when(entry.at), entry.what, entry.place, _event_details(entry)) for entry in result.events]
        lines += _table(("when", "what", "where", "details"), rows, paint)
    else:
        lines.append("Nothing has happened yet that was noted.")
    lines += _labelled(_history_rows(result), paint)
    return [*lines, result.note] if result.note else lines


def _event_details(entry: "HistoryEntry") -> str:
    words = [entry.why] if entry.why else []
    if entry.notice_seconds is not None:
        words.append(f"{entry.notice_seconds:.1f} s of notice")
    if entry.step is not None:
        words.append(f"{'from' if entry.what == 'resumed' else 'at'} step {entry.step}")
    if entry.steps_lost is not None:
        words.append(f"{entry.steps_lost} steps lost")
    if entry.price is not None:
        words.append(f"{entry.price:.4f} USD an hour")
    return ", ".join(words)


def _history_rows(result: "HistoryResult") -> list[Row]:
    seconds = result.seconds
    spent = {
        "useful": seconds.useful,
        "done again": seconds.redone,
        "saving": seconds.saving,
        "waiting": seconds.waiting,
        "restarting": seconds.restarting,
        "starting": seconds.starting,
        "stopped": seconds.stopped,
    }
    rows = [
        (
            "evictions",
            f"{result.evictions}, {result.with_notice} with notice, {result.without_notice} without; "
            f"{result.steps_lost} steps lost; Azure refused {_count(result.refusals, 'start')}",
        ),
        ("time", ", ".join(f"{name} {duration(value)}" for name, value in spent.items() if value) or "none yet"),
    ]
    rows.append(("money", _money(result.money)))
    if result.goodput is not None:
        rows.append(("goodput", f"{100 * result.goodput:.1f} % of the time in which the run was wanted"))
    return rows


def _money(money: "MoneyInfo") -> str:
    kinds = {
        "Spot": money.spot,
        "on demand": money.on_demand_vms,
        "disk": money.disk,
        "address": money.address,
        "storage": money.storage,
    }
    parts = ", ".join(f"{name} {value:.2f}" for name, value in kinds.items() if value)
    text = f"about {money.spent:.2f} USD for {money.hours:.1f} h of the VM" + (f" ({parts})" if parts else "")
    if money.on_demand is not None and money.savings is not None:
        told = f"{money.savings:.2f} saved" if money.savings >= 0 else f"{-money.savings:.2f} more was spent"
        text += f"; the {money.useful_hours:.1f} useful hours on demand {money.on_demand:.2f}, {told}"
    if money.unpriced_hours:
        text += f"; no price was known for {money.unpriced_hours:.1f} h"
    return f"{text} (estimates, from {money.source}, {_when(money.at)})"


def list_runs(result: "ListResult", paint: Paint) -> list[str]:
    place = _place(result.searched)
    if not result.runs:
        return [f"No runs on {place}."]
    rows = [
        (entry.run, entry.state, entry.size, entry.location, entry.cloud, _when(entry.created)) for entry in result.runs
    ]
    return _table(("run", "state", "size", "location", "cloud", "created"), rows, paint)


def emulator(fields: Mapping[str, Any], paint: Paint) -> list[str]:
    rows = [(key.replace("_", " "), _plain_value(value)) for key, value in fields.items()]
    return _labelled(rows, paint)


def serving(url: str, token: str, subscription: str) -> str:
    """Where `emulator serve` listens."""
    return (
        f"The embedded Azure listens on {url}, for this machine only.\n"
        f"  bearer token  {token}\n"
        f"  subscription  {subscription}\n"
        "Ctrl-C ends it; its VMs stay.\n"
    )


def _plain_value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain_value(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain_value(item)}" for key, item in value.items()) or "none"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _headline(run: str, state: str, paint: Paint) -> str:
    return f"{paint(run, 'bold')}: {paint(state, _STATE_STYLES.get(state, 'bold'))}"


def _vm_rows(vm: "VmInfo") -> list[Row]:
    price = "up to the on-demand price" if vm.max_price == -1 else f"at most {vm.max_price:g} USD an hour"
    told = f"{vm.priority}, {price}; {vm.eviction_policy} when evicted"
    if vm.priority == "Regular":
        told = "on demand: no Spot VM was to be had; it is never evicted, and stays on demand"
    zone = f" zone {vm.zone}" if vm.zone else ""
    power = vm.power_state if vm.provisioning_state == "Succeeded" else f"{vm.power_state}, {vm.provisioning_state}"
    return [
        ("VM", f"{vm.name}, {vm.size} in {vm.location}{zone}"),
        ("price", told),
        ("power", power + (f", address {vm.public_ip}" if vm.public_ip else "")),
    ]


def _training_rows(training: "Training | None", source: str = "") -> list[Row]:
    if training is None:
        return [("training", "nothing known yet")]
    rows = [("training", ", ".join(_training_words(training)))]
    if training.resumes:
        came_from = "" if training.resumed_from_step is None else f", last from step {training.resumed_from_step}"
        rows.append(("resumed", _count(training.resumes, "time") + came_from))
    if training.metrics:
        rows.append(("metrics", ", ".join(f"{name} {value:.4g}" for name, value in training.metrics.items())))
    if training.as_of:
        rows.append(("as of", f"{_when(training.as_of)} ({'from storage' if source == 'storage' else 'last known'})"))
    return rows


def _training_words(training: "Training") -> list[str]:
    words = []
    if training.finished:
        words.append("finished")
    if training.failed:
        code = "" if training.exit_code is None else f" (exit code {training.exit_code})"
        words.append(f"failed{code}")
    if training.step is not None:
        words.append(_progress(training.step, training.total_steps))
    if training.epoch is not None:
        words.append(f"epoch {training.epoch}" + (f" of {training.epochs}" if training.epochs else ""))
    if training.saved_step is not None and not training.finished:
        words.append(f"saved at step {training.saved_step}")
    if training.examples_per_second and not training.finished:
        words.append(f"{training.examples_per_second:.3g} examples/s")
    if training.eta_seconds is not None and not training.finished:
        words.append(f"about {duration(training.eta_seconds)} to go")
    return words or ["under way" if training.under_way else "nothing known yet"]


def _progress(step: int, total: int | None) -> str:
    return f"step {step} of {total} ({100 * step // total} %)" if total else f"step {step}"


def _next_of_state(run: str, state: str, vm: "VmInfo | None") -> list[Row]:
    follow = (f"cloudtrain logs -f {run}", "its journal, as it grows")
    again = (f"cloudtrain restart {run}", "goes on from the newest checkpoint")
    remove = (f"cloudtrain down {run}", "remove every trace")
    if state == "finished" and (vm is None or vm.power_state != "running"):
        return [(f"cloudtrain pull {run}", "bring home the model, from storage"), remove]
    return {
        "running": [follow],
        "provisioning": [(f"cloudtrain up {run}", "goes on with what is missing")],
        "evicted": [again, remove],
        "stopped": [again, remove],
        "finished": [(f"cloudtrain pull {run}", "bring home the model"), remove],
        "failed": [(f"cloudtrain logs {run} --source container", "what the trainer said"), remove],
    }.get(state, [])


def _bill(cloud: str, vm: "VmInfo | None", run: str) -> str:
    if cloud != "azure":
        return "A rehearsal on the embedded Azure: nothing is billed."
    if vm is None:
        return f"No VM is billed; cloudtrain down {run}  removes the rest."
    if vm.power_state == "deallocated":
        return f"The VM is not billed; its disk and its public address are, until cloudtrain down {run}."
    return f"The VM is billed by the second, until cloudtrain stop {run}  or  cloudtrain down {run}."


def emulator_settings(result: "Settings", paint: Paint) -> list[str]:
    rows = [("spot cores", str(result.spot_cores)), ("other cores", str(result.cores))]
    rows += [("quota", f"{what}: {cores}") for what, cores in result.quotas.items()]
    rows += [("spot price", f"{what}: {price:g} USD an hour") for what, price in result.prices.items()]
    rows += [("no capacity", _shortage(shortage)) for shortage in result.no_capacity]
    return _labelled([*rows, ("durations", f"{result.latency}, times {result.factor:g}")], paint)


def _shortage(shortage: "Shortage") -> str:
    where = [shortage.size or "every size"]
    if shortage.zone:
        where.append(f"in zone {shortage.zone}")
    where.append(f"in {shortage.location or 'every region'}")
    if shortage.until is not None:
        where.append(f"until {datetime.fromtimestamp(shortage.until, UTC):%H:%M:%S} UTC")
    return " ".join(where)


def faults(result: "Faults", paint: Paint) -> list[str]:
    if not result.faults:
        return ["No faults."]
    rows = [
        (str(rule.id), rule.kind, rule.on, _terms(rule), f"{rule.struck} of {rule.seen} requests")
        for rule in result.faults
    ]
    return _table(("id", "kind", "on", "when", "struck"), rows, paint)


def _terms(rule: "Rule") -> str:
    words = ["for ever" if rule.count is None else "once" if rule.count == 1 else f"{rule.count} times"]
    if rule.after:
        words.append(f"after {rule.after}")
    if rule.probability < 1:
        words.append(f"with probability {rule.probability:g} (seed {rule.seed})")
    words += [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in (("code", rule.code), ("retry-after", rule.retry_after), ("seconds", rule.seconds))
        if value is not None
    ]
    return ", ".join(words)


def _labelled(rows: Sequence[Row], paint: Paint) -> list[str]:
    width = max((len(label) for label, _ in rows), default=0)
    return [f"  {paint(label.ljust(width), 'dim')}  {' '.join(text.split())}" for label, text in rows]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], paint: Paint) -> list[str]:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    return [paint(lines[0].rstrip(), "bold"), *(line.rstrip() for line in lines[1:])]


def _next(paint: Paint, *commands: Row) -> list[str]:
    width = max((len(command) for command, _ in commands), default=0)
    lines = [f"  {paint(command.ljust(width), 'cyan')}  {why}" for command, why in commands]
    return ["What next:", *lines] if lines else []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _step(step: int | None) -> str:
    return "unknown" if step is None else f"step {step}"


def _seconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds:.1f} s"


def _when(iso: str) -> str:
    return re.sub(r"\.\d+", "", iso.replace("T", " ").replace("+00:00", " UTC"))


def _quoted(argument: str) -> str:
    import shlex

    return shlex.quote(argument)


def _place(searched: Sequence[str]) -> str:
    return " and ".join({"embedded": "the embedded Azure", "azure": "Azure"}.get(cloud, cloud) for cloud in searched)
