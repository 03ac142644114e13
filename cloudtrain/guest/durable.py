"""What lies in a run's blob container: the names, and the pointer to what a new VM goes on from.

The guest writes it, and this side reads it. `vm/storage.py` has a copy of the names, for the VM knows nothing of this
package; a test holds the two equal.
"""

import msgspec

# Every file of the mount that people look at, and the checkpoints, under their own paths.
MODELS = "models/"
# Of an image that writes straight into the mount: one consistent set, each file under its content's digest.
SETS = "sets/"
# What a new VM goes on from; written after everything that it names.
POINTER = "cloudtrain/newest.json"
# Which generation of the run's VM may train; an older one that reads a higher number ends itself.
FENCE = "cloudtrain/generation.json"
# What `observe.py` tells, as JSON, and when.
GUEST = "cloudtrain/guest.json"
# Append blobs `<source>.<number>`, whose contents in the order of their numbers are the log.
LOGS = "cloudtrain/logs/"


class StoredFile(msgspec.Struct, frozen=True):
    """path: below the mount. blob: its name. md5: of the content, base64."""

    path: str
    blob: str
    size: int
    md5: str


class StoredCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """name: of the entry in `checkpoints/`; '' for a set of files straight in the mount. step: None where the image
    does not tell."""

    name: str = ""
    step: int | None = None
    files: tuple[StoredFile, ...] = ()


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """newest: what a new VM goes on from. previous: whole ones before it, the newest first, for when it is damaged.
    files: what else of the mount a new VM takes along (journal, metrics, TensorBoard, ...). generation: of the VM that
    wrote it. time: epoch seconds."""

    version: int = 1
    generation: int
    time: float
    newest: StoredCheckpoint | None = None
    previous: tuple[StoredCheckpoint, ...] = ()
    files: tuple[StoredFile, ...] = ()


def parse_pointer(content: bytes) -> Pointer:
    """Raises msgspec.ValidationError or msgspec.DecodeError for what is none."""
    return msgspec.json.decode(content, type=Pointer)
