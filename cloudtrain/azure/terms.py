"""The legal terms of a marketplace image: accepted once for a subscription, before the first VM of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloudtrain.azure.errors import translated
from cloudtrain.azure.session import Session

OFFER_TYPE = "virtualmachine"


@dataclass(frozen=True)
class Terms:
    """license, privacy: where to read them."""

    accepted: bool
    license: str
    privacy: str


def read(session: Session, plan: Mapping[str, str]) -> Terms:
    """plan: as a VM names it (name, product, publisher)."""
    with translated("reading the terms of the VM image"):
        return _terms(session.marketplace.marketplace_agreements.get(OFFER_TYPE, **_names(plan)))


def accept(session: Session, plan: Mapping[str, str]) -> Terms:
    with translated("accepting the terms of the VM image"):
        agreements = session.marketplace.marketplace_agreements
        # What is accepted is what this GET signs: Azure takes it back only with its signature.
        found = agreements.get(OFFER_TYPE, **_names(plan))
        found.accepted = True
        return _terms(agreements.create(OFFER_TYPE, **_names(plan), parameters=found))


def _names(plan: Mapping[str, str]) -> dict[str, str]:
    return {"publisher_id": plan["publisher"], "offer_id": plan["product"], "plan_id": plan["name"]}


def _terms(found: Any) -> Terms:
    return Terms(bool(found.accepted), found.license_text_link or "", found.privacy_policy_link or "")
