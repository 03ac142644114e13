"""The SDK's enumerations, as the words that Azure sent."""

from enum import Enum


def word(value: object) -> str:
    """Azure's word for a value of one of the SDK's enumerations, which passes words unknown to it on as text."""
    if isinstance(value, Enum):
        return str(value.value)
    return str(value or "")
