"""RunSpec: what the user asked for, from `cloudtrain.toml` and the command line, validated once and then frozen."""

import msgspec


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a run is. It is kept, as JSON, in the tags of the run's resource group.

    image: the trainer image, a Docker reference. mount: absolute path in the container where checkpoints go.
    vm_image: URN publisher:offer:sku:version. max_price: USD an hour, -1 = up to the on-demand price.
    ssh_public_key: one OpenSSH line. arguments: handed to the trainer as they are. disk_gb: OS disk, GiB.
    """

    run: str
    location: str
    size: str
    vm_image: str
    image: str
    mount: str
    arguments: tuple[str, ...]
    max_price: float
    eviction_policy: str
    ssh_public_key: str
    disk_gb: int
