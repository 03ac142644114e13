"""A trainer in an image of the user's own, on the standard library alone: its weights are a chain of hashes.

It keeps the trainer contract: resumes from the newest checkpoint, saves on SIGTERM and ends with 75, ends with 0 when
it has finished, and tells its progress.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

EVERY, SECONDS = 10, 0.2
parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--twice", action="store_true", help="when told to end, save, and once more a step later")
ARGUMENTS = parser.parse_known_args()[0]
TOTAL, ENDS_AFTER = ARGUMENTS.steps, 2 if ARGUMENTS.twice else 1
PLACE = Path(os.environ["CHECKPOINT_DIR"])


def replace(path: Path, content: dict) -> None:
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def main() -> int:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    checkpoints = PLACE / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    newest = max(checkpoints.glob("[0-9]*"), default=None)
    held = json.loads(newest.read_text()) if newest else {"step": 0, "weights": "", "resumes": -1}
    begun, saved = held["step"], held["step"]
    held["resumes"] += 1
    ending = 0  # steps since it was told to end
    while held["step"] < TOTAL and ending < ENDS_AFTER:
        time.sleep(SECONDS)
        ending += bool(asked)
        held["step"] += 1
        held["weights"] = hashlib.sha256(f"{held['weights']} {held['step']}".encode()).hexdigest()
        # The first step of a start is saved too: from then on the start counts, whatever cuts it off.
        if held["step"] % EVERY == 0 or held["step"] == begun + 1 or ending:
            replace(checkpoints / f"{held['step']:08}", held)
            saved = held["step"]
        tell(held, begun, saved)
    replace(checkpoints / f"{held['step']:08}", held)
    tell(held, begun, held["step"])
    return 0 if held["step"] == TOTAL else 75


def tell(held: dict, begun: int, saved: int) -> None:
    told = {"step": held["step"], "total_steps": TOTAL, "resumed_from_step": begun, "saved_step": saved}
    finished = held["step"] == TOTAL
    more = {"resumes": held["resumes"], "finished": finished, "digest": held["weights"], "time": time.time()}
    replace(PLACE / "progress.json", {**told, **more})


if __name__ == "__main__":
    sys.exit(main())
