"""A trainer that keeps the trainer contract, for the tests; its flags make it break in various ways."""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=1_000_000)
parser.add_argument("--crash-at", type=int)
parser.add_argument("--exit", type=int)
parser.add_argument("--silent", action="store_true", help="write no progress.json and handle no signal")
parser.add_argument("--print", action="store_true", help="a line for each step")
parser.add_argument("--every", type=int, help="keep checkpoints/, one each so many steps and two at a time")
parser.add_argument("--size", type=int, default=1000, help="bytes of a checkpoint")
parser.add_argument("--folder", action="store_true", help="a checkpoint is a directory")
parser.add_argument("--straight", type=int, help="write weights.bin and shape.json in place each so many steps")
parser.add_argument("--hold", action="store_true", help="go no further than the first checkpoint")
parser.add_argument("--twice", action="store_true", help="when told to end, save, and once more a step later")
parser.add_argument("--pace", type=float, default=0.02)
parser.add_argument("--echo", nargs="*", default=[])
told = parser.parse_args()
home = Path(os.environ["CHECKPOINT_DIR"])
(home / "environment.json").write_text(json.dumps({"env": dict(os.environ), "argv": sys.argv[1:]}))
if told.exit is not None:
    print("the trainer gives up", flush=True)
    sys.exit(told.exit)
kept = home / "checkpoint"
many = home / "checkpoints"


def content(of: int) -> bytes:
    """Whoever reads it knows whether it is whole."""
    return (f"{of:010d} ".encode() * (told.size // 11 + 1))[: told.size]


def newest() -> int:
    """The step of the newest checkpoint. Anything but a whole one under its own name is a bug of whoever put it."""
    names = sorted(path.name for path in many.iterdir() if not path.name.startswith("."))
    for name in names:
        files = [many / name / "a", many / name / "b"] if told.folder else [many / name]
        if any(path.read_bytes() != content(int(name[:10])) for path in files):
            print(f"{name} is torn", flush=True)
            sys.exit(2)
    return int(names[-1][:10]) if names else 0


def save_checkpoint() -> None:
    part, name = many / ".part", many / f"{step:010d}.ckpt"
    if told.folder:
        part.mkdir()
        (part / "a").write_bytes(content(step))
        (part / "b").write_bytes(content(step))
    else:
        part.write_bytes(content(step))
    if not name.exists():
        part.rename(name)
    for old in sorted(path for path in many.iterdir() if not path.name.startswith("."))[:-2]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def write_straight() -> None:
    (home / "weights.bin").write_bytes(content(step))
    (home / "shape.json").write_text(f"{step:010d}")


if told.every:
    many.mkdir(exist_ok=True)
    begun = step = newest()
elif told.straight:
    begun = step = int((home / "shape.json").read_text()) if (home / "shape.json").exists() else 0
else:
    begun = step = int(kept.read_text()) if kept.exists() else 0


def tell(saved: int | None = None) -> None:
    seen = {
        "step": step,
        "total_steps": told.steps,
        "epoch": 1,
        "resumed_from_step": begun,
        "time": time.time(),
    }
    seen["saved_step"] = saved
    new = home / ".progress.json"
    new.write_text(json.dumps(seen))
    new.rename(home / "progress.json")


def await_notice_of_save() -> None:
    """Until the VM has written down that there was a save: the next one would hide it."""
    events = Path(os.environ["VM_DISK"], "cloudtrain", "events.jsonl")
    end = time.monotonic() + 20
    while '"saved"' not in events.read_text() and time.monotonic() < end:
        time.sleep(0.02)


def save(*_: object) -> None:
    global step
    if told.twice:
        tell(step)
        await_notice_of_save()
        step += 1
    if told.every:
        save_checkpoint()
    elif not told.straight:
        kept.write_text(str(step))
    tell(step)
    print(f"saved at {step}", flush=True)
    sys.exit(75)


saved: "int | None" = None
if not told.silent:
    signal.signal(signal.SIGTERM, save)
    tell()
while step < told.steps:
    time.sleep(told.pace)
    step += 1
    if told.every and step % told.every == 0:
        save_checkpoint()
        saved = step
    if told.straight and step % told.straight == 0:
        write_straight()
    if told.print:
        print(f"step {step}", flush=True)
    if not told.silent:
        tell(saved)
    while told.hold and saved:
        time.sleep(0.01)
    if told.crash_at is not None and step >= told.crash_at:
        print("out of luck", flush=True)
        sys.exit(3)
print("done", flush=True)
