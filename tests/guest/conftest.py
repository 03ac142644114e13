"""The fixtures: see guest_vm.py and blob_store.py."""

from .blob_store import blob_server, store
from .guest_vm import vm

__all__ = ["blob_server", "store", "vm"]
