"""What runs inside a node: a container that stands for a VM, with real cron, sshd and Docker engine.

These modules, and the few beside them that they import, are copied into the node image (see `node_image`). `init` is
the node's process 1: when it ends, the kernel ends everybody else in the node, which is how the power is cut.
"""

from pathlib import Path

from cloudtrain.emulator.machines import MANAGEMENT_PATH

DISK = Path("/disk")  # where the engine mounts the VM's disk, a volume
UPPER = DISK / "upper"  # what the VM has written below `/`
ENGINE_DISK = DISK / "docker"  # overlayfs takes no third layer: the VM's own engine writes beside `/`, not on it
RECORDS = DISK / "machine"  # config.json, state.json, and what is known of scripts
RECORDS_INSIDE = Path("/var/lib/cloudtrain-machine")
SOCKET = "/run/cloudtrain-machine.sock"
SSH_PORT = 22
AZURE = RECORDS / "azure"  # where the engine mounts the directory with the socket of the blobs' server
AZURE_INSIDE = RECORDS_INSIDE / "azure"
AZURE_PORT = 10000
ENVIRONMENT = {
    "CLOUDTRAIN_BLOBS": f"http://127.0.0.1:{AZURE_PORT}",
    "CLOUDTRAIN_ARM": f"http://127.0.0.1:{AZURE_PORT}{MANAGEMENT_PATH}",
}
"""What every process of a node finds in its environment."""
