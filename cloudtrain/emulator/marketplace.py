"""Terms of marketplace images: Microsoft.MarketplaceOrdering."""

import hashlib
import json

from cloudtrain.emulator import catalog, preconditions
from cloudtrain.emulator.catalog import Image, Plan
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Records
from cloudtrain.emulator.wire import Answer, ArmError, Request, guid, moment, same, section, zulu

NAMESPACE = "Microsoft.MarketplaceOrdering"


def _setting(plan: Plan) -> str:
    return f"terms:{plan.publisher}:{plan.product}:{plan.name}".lower()


def first_settings(fresh: bool) -> dict[str, str]:
    """The terms that a subscription in use has accepted; a brand-new one has none."""
    accepted = json.dumps({"accepted": True})
    return {} if fresh else {_setting(plan): accepted for plan in catalog.ACCEPTED_BY_DEFAULT}


def accepted(records: Records, plan: Plan) -> bool:
    return bool(json.loads(records.setting(_setting(plan)) or "{}").get("accepted"))


def check_plan(records: Records, image: Image, given: Json, subscription: str) -> None:
    """Raises what a VM PUT meets when the plan is missing, superfluous, another one, or its terms are not
    accepted."""
    if image.plan is None and given:
        raise ArmError(
            400,
            "VMMarketplaceInvalidInput",
            f"The platform image '{image.urn}' does not need Plan information, please remove the Plan "
            "information "
            "from the request.",
        )
    if image.plan is None:
        return
    wanted = {"name": image.plan.name, "product": image.plan.product, "publisher": image.plan.publisher}
    if not given:
        raise ArmError(
            400,
            "VMMarketplaceInvalidInput",
            "Creating a virtual machine from Marketplace image or a custom image sourced from a Marketplace "
            "image "
            "requires Plan information in the request. VM: '/subscriptions/…'.",
        )
    if any(not same(str(given.get(key, "")), value) for key, value in wanted.items()):
        raise ArmError(
            400,
            "VMMarketplaceInvalidInput",
            f"The Plan information in the request does not match that of the image '{image.urn}': {wanted}.",
        )
    if not accepted(records, image.plan):
        raise _not_accepted(image.plan, subscription)


def _not_accepted(plan: Plan, subscription: str) -> ArmError:
    return ArmError(
        400,
        "ResourcePurchaseValidationFailed",
        "User failed validation to purchase resources. Error message: 'You have not accepted the legal terms "
        "on this "
        f"subscription: '{subscription}' for this plan. Before the subscription can be used, you need to "
        "accept the "
        "legal terms of the image. To read and accept legal terms, use the Azure CLI commands described at "
        "https://go.microsoft.com/fwlink/?linkid=2110637 or the PowerShell commands available at "
        "https://go.microsoft.com/fwlink/?linkid=862451. Alternatively, deploying via the Azure portal "
        "provides a UI "
        f"experience for reading and accepting the legal terms. Offer details: publisher='{plan.publisher}' "
        "offer = "
        f"'{plan.product}', sku = '{plan.name}', Correlation Id: '{guid()}'.'",
    )


def _known_plan(publisher: str, offer: str, plan: str) -> Plan:
    for image in catalog.IMAGES:
        known = image.plan
        if (
            known is not None
            and same(known.publisher, publisher)
            and same(known.product, offer)
            and same(known.name, plan)
        ):
            return known
    raise ArmError(
        400,
        "BadRequest",
        f"Offer with PublisherId: '{publisher}' and OfferId: '{offer}' and PlanId: '{plan}' not found. If "
        "this offer "
        "has been created recently, please allow up to 30 minutes for this offer to be available.",
    )


def _agreement(azure: Azure, request: Request, plan: Plan, kept: Json, *, written: bool) -> Json:
    # The id of an answer to PUT repeats the type where the offer type belongs; recorded so in 2022.
    kind = "Microsoft.MarketplaceOrdering/offertypes" if written else "VirtualMachine"
    now = azure.now()
    retrieved = kept.get("retrieveDatetime") if written else None
    signature = kept.get("signature") if written else None
    stamp = {"createdBy": request.subscription, "createdByType": "ManagedIdentity", "createdAt": moment(now)}
    changed = {"lastModifiedBy": request.subscription, "lastModifiedByType": "ManagedIdentity"}
    return {
        "id": f"/subscriptions/{request.subscription}/providers/{NAMESPACE}/offerTypes/{kind}/publishers/"
        f"{plan.publisher}/offers/{plan.product}/plans/{plan.name}/agreements/current",
        "name": plan.name,
        "type": "Microsoft.MarketplaceOrdering/offertypes",
        "properties": {
            "publisher": plan.publisher,
            "product": plan.product,
            "plan": plan.name,
            "licenseTextLink": f"https://mpcprodsa.blob.core.windows.net/legalterms/{_digest(plan, 'legal')}.txt",
            "privacyPolicyLink": f"https://www.{plan.publisher}.com/privacy",
            "marketplaceTermsLink": "https://mpcprodsa.blob.core.windows.net/marketplaceterms/"
            f"{_digest(plan, 'terms')}.txt",
            "retrieveDatetime": retrieved or zulu(now),
            "signature": signature or _sign(),
            "accepted": bool(kept.get("accepted")),
        },
        "systemData": {**stamp, **changed, "lastModifiedAt": moment(now)},
    }


def _digest(plan: Plan, what: str) -> str:
    return hashlib.sha256(f"{what}:{plan}".encode()).hexdigest().upper()[:52]


def _sign() -> str:
    return hashlib.sha512(guid().encode()).hexdigest().upper()[:104]


def get_agreement(azure: Azure, request: Request, publisher: str, offer: str, plan: str) -> Answer:
    known = _known_plan(publisher, offer, plan)
    with azure.store.read() as records:
        kept = json.loads(records.setting(_setting(known)) or "{}")
    return Answer(200, _agreement(azure, request, known, kept, written=False))


def put_agreement(azure: Azure, request: Request, publisher: str, offer: str, plan: str) -> Answer:
    known = _known_plan(publisher, offer, plan)
    given = section(request.object(), "properties")
    if not given.get("signature"):
        raise ArmError(400, "BadRequest", "The terms' signature is missing: PUT what GET has answered.")
    return _keep(azure, request, known, bool(given.get("accepted")), given)


def sign(azure: Azure, request: Request, publisher: str, offer: str, plan: str) -> Answer:
    return _keep(azure, request, _known_plan(publisher, offer, plan), True, {})


def cancel(azure: Azure, request: Request, publisher: str, offer: str, plan: str) -> Answer:
    return _keep(azure, request, _known_plan(publisher, offer, plan), False, {})


def _keep(azure: Azure, request: Request, plan: Plan, agreed: bool, given: Json) -> Answer:
    with azure.store.write() as records:
        preconditions.registered(records, NAMESPACE)
        kept = json.loads(records.setting(_setting(plan)) or "{}")
        if agreed or "signature" not in kept:  # what cancels keeps the date and signature of the acceptance
            kept |= {key: given.get(key) for key in ("retrieveDatetime", "signature")}
        kept["accepted"] = agreed
        records.set_setting(_setting(plan), json.dumps(kept))
    return Answer(200, _agreement(azure, request, plan, kept, written=True))


_R = f"/subscriptions/<subscription>/providers/{NAMESPACE.lower()}"
_C = f"{_R}/offertypes/virtualmachine/publishers/<publisher>/offers/<offer>/plans/<plan>/agreements/current"
_A = f"{_R}/agreements/<publisher>/offers/<offer>/plans/<plan>"
ROUTES = [
    Route("GET", _C, "MarketplaceAgreements_Get", get_agreement),
    Route("PUT", _C, "MarketplaceAgreements_Create", put_agreement),
    Route("GET", _A, "MarketplaceAgreements_GetAgreement", get_agreement),
    Route("POST", f"{_A}/sign", "MarketplaceAgreements_Sign", sign),
    Route("POST", f"{_A}/cancel", "MarketplaceAgreements_Cancel", cancel),
]
