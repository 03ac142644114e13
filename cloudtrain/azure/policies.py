"""What our clients do with every answer, besides the SDK's own policies."""

import json
from typing import Any

from azure.core.pipeline.policies import SansIOHTTPPolicy

from cloudtrain.azure.errors import HINTS
from cloudtrain.errors import Blocks, Refused

NOT_REGISTERED = "MissingSubscriptionRegistration"


class NoRegistration(SansIOHTTPPolicy):  # type: ignore[misc]  # azure.core is not typed for subclassing
    """Raises where azure-mgmt-core would register a resource provider by itself and send the request again.

    A look must change nothing; and its second try cannot send a streamed body (the network client's PUTs) again."""

    def on_response(self, request: Any, response: Any) -> None:
        answer = response.http_response
        if answer.status_code != 409:
            return
        # Answers of azure.core.rest are read first, the older kind gives its body as it is.
        body = answer.read() if hasattr(answer, "read") else answer.body()
        try:
            error = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError):
            return
        if error.get("code") == NOT_REGISTERED:
            # Not one of azure-core's exceptions: those would be retried.
            message = f"Azure refused: {error.get('message')}"
            raise Refused(NOT_REGISTERED, message, HINTS[NOT_REGISTERED], Blocks.EVERYTHING)
