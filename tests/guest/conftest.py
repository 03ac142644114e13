"""The fixture `vm`: see guest_vm.py."""

from .guest_vm import vm

__all__ = ["vm"]
