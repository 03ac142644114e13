"""A trainer that keeps the trainer contract, for the tests; its flags make it break in various ways."""

import argparse
import json
import os
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
parser.add_argument("--pace", type=float, default=0.02)
parser.add_argument("--echo", nargs="*", default=[])
told = parser.parse_args()
home = Path(os.environ["CHECKPOINT_DIR"])
(home / "environment.json").write_text(json.dumps({"env": dict(os.environ), "argv": sys.argv[1:]}))
if told.exit is not None:
    print("the trainer gives up", flush=True)
    sys.exit(told.exit)
kept = home / "checkpoint"
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


def save(*_: object) -> None:
    kept.write_text(str(step))
    tell(step)
    print(f"saved at {step}", flush=True)
    sys.exit(75)


if not told.silent:
    signal.signal(signal.SIGTERM, save)
    tell()
while step < told.steps:
    time.sleep(told.pace)
    step += 1
    if told.print:
        print(f"step {step}", flush=True)
    if not told.silent:
        tell()
    if told.crash_at is not None and step >= told.crash_at:
        print("out of luck", flush=True)
        sys.exit(3)
print("done", flush=True)
