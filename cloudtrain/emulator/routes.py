"""What a provider module tells the app about each of its operations."""

from collections.abc import Callable
from dataclasses import dataclass

from cloudtrain.emulator.wire import Answer

Handler = Callable[..., Answer]
"""handler(azure, request, **names from the path)"""


@dataclass(frozen=True)
class Route:
    """One operation.

    path: a pattern such as /subscriptions/<sub>, matched without
    case; names keep the client's casing. operation: Azure's
    operationId. limits: the rate limits that Compute counts it against ("LowCostGet":
    `LowCostGetSubscriptionMaximum` and `LowCostGetResource`), "" for none."""

    method: str
    path: str
    operation: str
    handler: Handler
    limits: str = ""
