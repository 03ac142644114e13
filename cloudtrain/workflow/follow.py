"""`up --follow`: stay until training has ended, showing its journal."""

from collections.abc import Callable

import msgspec

from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.results import Training
from cloudtrain.workflow import logs
from cloudtrain.workflow.status import status


class FollowResult(msgspec.Struct, frozen=True):
    run: str
    cloud: str
    state: str
    training: Training | None


def follow(ctx: Context, run: str, emit: Callable[[str], None]) -> FollowResult:
    """emit is handed the journal's text as it grows. Raises NoSuchRun, Refused (the run was stopped meanwhile)."""
    logs.logs(ctx, run, source="training", follow=True, emit=emit)
    now = status(ctx, run)
    return FollowResult(run=run, cloud=now.cloud, state=now.state, training=now.training)
