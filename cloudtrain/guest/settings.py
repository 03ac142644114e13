"""What the guest must know about its run."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class GuestSettings:
    """What the guest must know about its run; written to settings.json on the VM.

    vm_name: the resource's name, the one scheduled events speak of. image: a Docker reference. mount: where
    in the container models/ appears. writes_progress: whether the image writes progress.json; None when
    that is not known. tuning: times and sizes that differ from those in vm/guest.py, by name; for tests and
    rehearsals. secrets: names of variables whose values come as protected parameters. when_done: what the VM does to
    itself once training has finished and everything is in storage: keep, deallocate or delete. vm_id: its Azure
    resource id, where its identity may do that; '' where it may not. Raises ValueError for what Docker could not be
    told.
    """

    run: str
    generation: int
    vm_name: str
    image: str
    mount: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    gpus: bool
    writes_progress: bool | None
    tuning: Mapping[str, object] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    when_done: str = "keep"
    vm_id: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.\-/:@\[\]]*", self.image, re.ASCII):
            raise ValueError(f"Received image {self.image!r}. Expected a Docker reference, such as name:tag.")
        if not re.fullmatch(r"/[^:\0\n]+", self.mount):
            raise ValueError(f"Received mount {self.mount!r}. Expected an absolute path without ':'.")
        for name, value in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
                raise ValueError(f"Received the environment variable {name!r}. Expected NAME and text.")
        if any(not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in self.secrets):
            raise ValueError(f"Received secrets {self.secrets!r}. Expected names of variables.")
        # The value stands in the environment of the docker client, which reads these itself.
        if any(re.fullmatch(r"PATH|HOME|LD_.*|DOCKER_.*", name) for name in self.secrets):
            raise ValueError(f"Received secrets {self.secrets!r}. Expected none that docker itself reads.")
        if any("\0" in argument for argument in self.arguments):
            raise ValueError("Received an argument with a NUL character. Expected text.")

    def to_json(self) -> bytes:
        fields = {
            "run": self.run,
            "generation": self.generation,
            "vm_name": self.vm_name,
            "image": self.image,
            "mount": self.mount,
            "arguments": list(self.arguments),
            "environment": [list(pair) for pair in self.environment],
            "gpus": self.gpus,
            "writes_progress": self.writes_progress,
            "tuning": dict(self.tuning),
            "secrets": list(self.secrets),
            "when_done": self.when_done,
            "vm_id": self.vm_id,
        }
        return json.dumps(fields, indent=1).encode() + b"\n"
