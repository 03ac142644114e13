"""When a request to Azure is sent again: the same rules on both clouds, with shorter pauses where Azure is embedded."""

from dataclasses import dataclass
from typing import Any

from azure.core.pipeline.policies import RetryPolicy
from azure.mgmt.core.polling.arm_polling import ARMPolling

from cloudtrain.clock import pause

ATTEMPTS_AGAIN = 6


@dataclass(frozen=True)
class Pace:
    """Seconds. backoff: the pauses before a request is sent again are 0, then 2, 4, 8 ... times this, where the answer
    names none. read_timeout: how long to wait for an answer. look: the longest pause between looks at an operation."""

    backoff: float
    read_timeout: float
    look: float


# Seven attempts over 50 s outlast a hiccup of the network. Resource Manager gives up on an answer after a minute.
# Azure asks for pauses of 10 to 50 s between looks at an operation, and allows 45 looks in 3 minutes: as many as
# `pause` makes up to 5 s.
AZURE = Pace(backoff=0.8, read_timeout=70.0, look=5.0)
EMBEDDED = Pace(backoff=0.02, read_timeout=2.0, look=5.0)


class Retries(RetryPolicy):  # type: ignore[misc]  # azure.core is not typed for subclassing
    """azure-core's own policy. It sends GET, PUT and DELETE again after an answer that says to (429, 5xx) or a
    connection that broke, POST and PATCH after 5xx; and here these two after 429 as well: nothing was done then."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(
            retry_total=10,
            retry_connect=ATTEMPTS_AGAIN,
            retry_read=ATTEMPTS_AGAIN,
            retry_status=ATTEMPTS_AGAIN,
            retry_backoff_factor=pace.backoff,
        )

    def _is_method_retryable(self, settings: dict[str, Any], request: Any, response: Any = None) -> bool:
        if response is not None and response.status_code == 429:
            return True
        return bool(super()._is_method_retryable(settings, request, response))


def of_blobs(pace: Pace, *, patient: bool = True) -> Any:
    """The blob client has a policy of its own, whose pauses of 18, 24 and 42 s nobody would sit through. It does not
    send a request again that was refused. patient: outlast a hiccup of the network; else one try more, for where what
    the blobs tell can be had elsewhere."""
    from azure.storage.blob import LinearRetry

    attempts = ATTEMPTS_AGAIN if patient else 1
    return LinearRetry(backoff=4 * pace.backoff, retry_total=attempts, random_jitter_range=pace.backoff)


class Polling(ARMPolling):  # type: ignore[misc]
    """Azure's own polling, at a pace of ours where Azure asks for longer pauses."""

    def __init__(self, pace: Pace, **options: Any) -> None:
        super().__init__(timeout=pace.look, **options)
        self._longest, self._waited = pace.look, 0.0

    def _extract_delay(self) -> float:
        delay = min(float(super()._extract_delay()), pause(self._waited, self._longest))
        self._waited += delay
        return delay
