"""The one place that knows which cloud is in use: it hands out the clients, the defaults and what the cloud can do."""

import base64
import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cloudtrain.azure.errors import translated
from cloudtrain.clock import Clock
from cloudtrain.errors import CloudtrainError, Exit, InvalidSpec, Refused
from cloudtrain.progress import Progress

if TYPE_CHECKING:
    from cloudtrain.azure.retries import Pace

EMBEDDED, AZURE = "embedded", "azure"
PROCESS, CONTAINER = "process", "container"
REHEARSAL_IMAGE = "cloudtrain-trainer"
# The image of the tutorial on Azure that this project began with; on the embedded Azure our trainer stands in for it.
TUTORIAL_IMAGE = "miltonius/cloud_trainingv2"
AZURE_POLL_SECONDS = 10.0
PUBLISH_SECONDS, REHEARSAL_PUBLISH_SECONDS = 15.0, 1.0
# Options of a call that does nothing when it is made a second time: azure-core then sends POST and PATCH again, too,
# after a connection that broke before the answer came.
REPEATABLE = {"retry_on_methods": ("GET", "HEAD", "PUT", "DELETE", "POST", "PATCH")}
ARM_SCOPE = "https://management.azure.com/.default"
STORAGE_SCOPE = "https://storage.azure.com/.default"
BLOB_PIECE = 8 * 1024 * 1024
PRICES_URL = "https://prices.azure.com"


@dataclass(frozen=True)
class Defaults:
    """What a run gets where the user says nothing. trainer_image: None = the user has to name one, or a repository.
    repository: where every image that is built goes; None = where the user says."""

    location: str = "eastus"
    # Spot-capable and inside the 3 Spot cores of a new subscription.
    size: str = "Standard_D2s_v3"
    vm_image: str = "nvidia:ngc_azure_17_11:ngc-base-version-25_9_1_gen2:latest"
    mount: str = "/app/Saved_Model"
    disk_gb: int = 64
    trainer_image: str | None = None
    repository: str | None = None
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Capabilities:
    """What a workflow may ask for. notice: the warning before an eviction can be chosen. published_images: a VM can
    pull any image. ssh: a VM has an SSH server. bills: what is made costs money. poll_seconds: how often to look at a
    thing that changes by itself (Azure allows about 36 reads of a VM in 3 minutes). publish_seconds: how often the
    guest writes to the run's storage what it sees."""

    notice: bool
    published_images: bool
    ssh: bool
    bills: bool
    poll_seconds: float
    publish_seconds: float = PUBLISH_SECONDS


class Session(AbstractContextManager["Session"]):
    """Clients for one subscription of one cloud. Clients are made on first use: their imports cost up to 0.6 s each.

    login: which credential was used. price_list: whose prices `prices` answers. opened: the runs' blob containers,
    or why one could not be opened, by the group's id; whoever keeps a session for long forgets them now and then, for
    rights and accounts change. images: the VM images that were looked up, by location and URN: they never change."""

    def __init__(
        self,
        *,
        cloud: str,
        name: str,
        subscription_id: str,
        credential: Any,
        login: str,
        principal: Callable[[], tuple[str, str]],
        price_list: str,
        client_options: dict[str, Any],
        pace: "Pace",
        defaults: Defaults,
        capabilities: Capabilities,
        caller_address: Callable[[], str | None],
        set_notice: Callable[[str, float], None] | None = None,
        ssh_address: Callable[[str], tuple[str, int] | None] | None = None,
        prepare: Callable[[Progress], None] = lambda progress: None,
        sweep: Callable[[], list[str]] = list,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.cloud = cloud
        self.name = name
        self.subscription_id = subscription_id
        self.defaults = defaults
        self.capabilities = capabilities
        self.login = login
        self._principal = principal
        self.price_list = price_list
        self._credential = credential
        self._client_options = client_options
        self._pace = pace
        self.caller_address = caller_address  # the public address that this machine comes from, None where unknown
        self.prepare = prepare  # before a run is made: what its VM needs of this machine
        self.sweep = sweep  # after a run is gone: what served the last one; the names of what could not be removed
        self._set_notice = set_notice
        self._ssh_address = ssh_address
        self._close = close
        self.opened: dict[str, Any] = {}
        self.images: dict[tuple[str, str], Any] = {}

    @cached_property
    def principal(self) -> tuple[str, str]:
        """Whoever is logged in, as a role assignment wants it: the object id, '' where the login does not tell, and
        'User' or 'ServicePrincipal'."""
        return self._principal()

    @property
    def principal_id(self) -> str:
        return self.principal[0]

    @property
    def _options(self) -> dict[str, Any]:
        """Of a new client. A policy belongs to one client's pipeline, so each gets its own."""
        own = {"retry_policy": _retries(self._pace), "per_retry_policies": _own_policies()}
        return self._client_options | own | {"polling_interval": self._pace.look}

    @cached_property
    def compute(self) -> Any:
        from azure.mgmt.compute import ComputeManagementClient

        return ComputeManagementClient(self._credential, self.subscription_id, **self._options)

    @cached_property
    def network(self) -> Any:
        from azure.mgmt.network import NetworkManagementClient

        return NetworkManagementClient(self._credential, self.subscription_id, **self._options)

    @cached_property
    def storage(self) -> Any:
        from azure.mgmt.storage import StorageManagementClient

        return StorageManagementClient(self._credential, self.subscription_id, **self._options)

    @cached_property
    def authorization(self) -> Any:
        from azure.mgmt.authorization import AuthorizationManagementClient

        return AuthorizationManagementClient(
            self._credential, self.subscription_id, api_version="2022-04-01", **self._options
        )

    def blob_service(self, endpoint: str, credential: Any = None, *, patient: bool = True) -> Any:
        """The blobs of a storage account. credential: an account key with its name; else the login. patient: see
        `retries.of_blobs`."""
        from azure.storage.blob import BlobServiceClient

        from cloudtrain.azure import retries

        return BlobServiceClient(
            endpoint,
            credential=credential or self._credential,
            transport=self._options["transport"],
            retry_policy=retries.of_blobs(self._pace, patient=patient),
            # What is fetched is kept piece by piece, so that an interrupted fetch goes on where it was.
            max_single_get_size=BLOB_PIECE,
            max_chunk_get_size=BLOB_PIECE,
        )

    @cached_property
    def resources(self) -> Any:
        from azure.mgmt.resource.resources import ResourceManagementClient

        return ResourceManagementClient(self._credential, self.subscription_id, **self._options)

    @cached_property
    def marketplace(self) -> Any:
        from azure.mgmt.marketplaceordering import MarketplaceOrderingAgreements

        return MarketplaceOrderingAgreements(self._credential, self.subscription_id, **self._options)

    @cached_property
    def prices(self) -> Any:
        """The public price list: no login, and one try more at most, for nothing depends on it."""
        from azure.core import PipelineClient

        return PipelineClient(PRICES_URL, transport=self._options["transport"], retry_total=1)

    def polling(self) -> Any:
        """How the SDK is to wait for one long-running operation: its `polling=`."""
        from cloudtrain.azure.retries import Polling

        return Polling(self._pace)

    def set_notice(self, vm_id: str, seconds: float) -> None:
        """How long before its next eviction the VM is warned."""
        if self._set_notice is None:
            raise InvalidSpec(
                f"--notice: on {self.name} the warning before an eviction cannot be chosen; it is up to 30 s.",
                "Leave --notice out, or rehearse with --cloud embedded.",
            )
        self._set_notice(vm_id, seconds)

    def ssh_address(self, vm_id: str, public_ip: str | None) -> tuple[str, int] | None:
        """Host and port by which this machine reaches the VM's SSH server; None while it has none."""
        if self._ssh_address is not None:
            return self._ssh_address(vm_id)
        return (public_ip, 22) if public_ip else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def open_session(
    cloud: str, *, home: Path, clock: Clock, subscription: str | None = None, machine: str | None = None
) -> Session:
    """A session on `embedded` or `azure`. machine: the kind that a rehearsal's VMs are to be; None: as they are.

    Raises CloudtrainError where there is no login or no subscription, and where VMs of another kind are there."""
    if cloud == AZURE:
        return _azure(clock, subscription)
    return _embedded(home, clock, machine)


def embedded_azure(
    home: Path,
    clock: Clock,
    trainer: list[str] | None = None,
    *,
    machine: str | None = None,
) -> Any:
    """The emulator on its VMs, for the session and for the `emulator` verbs. trainer: the command that stands for the
    trainer image; the one of this Python environment unless given. machine: the kind that the VMs are to be."""
    from cloudtrain.emulator.embedded import EmbeddedAzure, choose_machine

    root = home / "emulator"
    with emulator_errors():
        chosen = choose_machine(root, kind=machine)
        if chosen.kind == CONTAINER:
            machines = _containers(root, clock, chosen.node_base)
        else:
            machines = _processes(root, clock, trainer or _trainer_command())
        return EmbeddedAzure(root, clock=clock, machines=machines)


def build_node(home: Path, clock: Clock, progress: Progress, base: str | None) -> str:
    """The image of the machines of kind `container`; returns its name. base: see `emulator node`."""
    from cloudtrain.emulator.embedded import choose_machine

    root = home / "emulator"
    with emulator_errors(), progress.step("node image", usually="2 to 4 minutes") as step:
        machines = _containers(root, clock, choose_machine(root, node_base=base).node_base)
        image: str = machines.build(step.update)
        return image


def used_machines(home: Path) -> list[str]:
    """The kinds of machines of which something may be left."""
    return [CONTAINER, PROCESS] if (home / "emulator" / "nodes" / "made").exists() else [PROCESS]


def _processes(root: Path, clock: Clock, trainer: list[str]) -> Any:
    from cloudtrain.emulator.machines.process import ProcessMachines

    return ProcessMachines(
        root / "vms",
        clock=clock,
        images={REHEARSAL_IMAGE: trainer, TUTORIAL_IMAGE: _tutorial_command()},
        readable=_python_directories(),
        blob_server=_python_module("cloudtrain.emulator.blobs.server", str(root)),
    )


def _containers(root: Path, clock: Clock, node_base: str) -> Any:
    from cloudtrain.emulator.machines.container import container_machines

    return container_machines(root, clock=clock, node_base=node_base)


@contextmanager
def emulator_errors() -> Iterator[None]:
    """What the rehearsals need of this machine can be missing (a Docker engine, room on the disk) or damaged: named
    here, at the edge."""
    from cloudtrain.emulator.embedded import OtherMachines
    from cloudtrain.emulator.machines import MachineError
    from cloudtrain.emulator.store import DamagedStore, StoreError

    try:
        yield
    except MachineError as error:
        raise CloudtrainError(
            "MachineFailed", str(error), "Put that right, then run the same command again.", Exit.ENGINE
        ) from error
    except OtherMachines as error:
        hint = "cloudtrain down  ends them one by one; CLOUDTRAIN_HOME=DIRECTORY  keeps other rehearsals apart."
        raise InvalidSpec(f"machine: {error}", hint, code="OtherMachines") from error
    except DamagedStore as error:
        raise CloudtrainError("DamagedStore", str(error), "cloudtrain emulator reset  starts over.") from error
    except StoreError as error:
        hint = "Make room, or point CLOUDTRAIN_HOME at a directory that you may write."
        raise CloudtrainError("UnusableStore", str(error), hint) from error


def trainer_missing() -> str | None:
    """The name of the package without which the rehearsal's VMs cannot train; None when they can."""
    for package in ("tensorflow", "tensorflow_datasets"):
        if importlib.util.find_spec(package) is None:
            return package
    return None


def _retries(pace: "Pace") -> Any:
    from cloudtrain.azure.retries import Retries

    return Retries(pace)


def _embedded(home: Path, clock: Clock, machine: str | None = None) -> Session:
    emulator = embedded_azure(home, clock, machine=machine)
    return on_emulator(emulator, clock, poll_seconds=0.5 if emulator.machine == CONTAINER else 0.2)


def on_emulator(emulator: Any, clock: Clock, pace: "Pace | None" = None, poll_seconds: float = 0.2) -> Session:
    """A session on an `EmbeddedAzure`; closing it closes that. pace: None for the quick one of rehearsals."""
    import requests

    from cloudtrain.azure import retries
    from cloudtrain.azure.wsgi_transport import WsgiAdapter
    from cloudtrain.emulator.firewall import CALLER

    pace = pace or retries.EMBEDDED
    http = requests.Session()
    http.trust_env = False  # no proxy leads here: looking for one costs more than the answer

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with emulator_errors():
            answer: Iterable[bytes] = emulator(environ, start_response)
            return answer

    http.mount("https://", WsgiAdapter(app))
    return Session(
        cloud=EMBEDDED,
        name="the embedded Azure",
        subscription_id=emulator.subscription_id,
        credential=_EmbeddedCredential(emulator.token, emulator.storage_token),
        login="the embedded Azure's own token",
        principal=lambda: (str(emulator.caller_id), "User"),
        price_list="the embedded Azure's own list, which is not what Azure asks",
        client_options={"transport": _transport(clock, pace, session=http, session_owner=False)},
        pace=pace,
        caller_address=lambda: CALLER,
        set_notice=emulator.set_notice,
        ssh_address=emulator.ssh_address,
        **(_full_rehearsal if emulator.machine == CONTAINER else _quick_rehearsal)(emulator, poll_seconds),
    )


def _transport(clock: Clock, pace: "Pace", **options: Any) -> Any:
    from cloudtrain.azure.wsgi_transport import ClockedTransport

    return ClockedTransport(clock, connection_timeout=10, read_timeout=pace.read_timeout, **options)


def _quick_rehearsal(emulator: Any, poll_seconds: float) -> dict[str, Any]:
    """VMs that are processes run the trainer of this Python environment."""
    return {
        "defaults": Defaults(trainer_image=REHEARSAL_IMAGE, arguments=REHEARSAL_ARGUMENTS),
        "capabilities": Capabilities(
            notice=True,
            published_images=False,
            ssh=False,
            bills=False,
            poll_seconds=poll_seconds,
            publish_seconds=REHEARSAL_PUBLISH_SECONDS,
        ),
        "close": emulator.close,
    }


def _full_rehearsal(emulator: Any, poll_seconds: float) -> dict[str, Any]:
    """VMs that are containers with a Docker engine of their own run what Azure's VMs would run."""

    def prepare(progress: Progress) -> None:
        usually = "10 s, the first time 2 to 4 minutes"
        with emulator_errors(), progress.step("node image and registry", usually=usually) as step:
            emulator.machines.prepare(step.update)

    def sweep() -> list[str]:
        with emulator_errors():
            left: list[str] = emulator.sweep()
            return left

    def close() -> None:
        emulator.machines.release()
        emulator.close()

    return {
        "defaults": Defaults(repository=emulator.machines.repository(REHEARSAL_IMAGE), arguments=REHEARSAL_ARGUMENTS),
        "capabilities": Capabilities(
            notice=True,
            published_images=True,
            ssh=True,
            bills=False,
            poll_seconds=poll_seconds,
            publish_seconds=REHEARSAL_PUBLISH_SECONDS,
        ),
        "prepare": prepare,
        "sweep": sweep,
        "close": close,
    }


# A small, honest job: a minute or two on two cores.
REHEARSAL_ARGUMENTS = ("--dataset", "silhouettes", "--image-size", "96", "--epochs", "20")


class _EmbeddedCredential:
    """azure-identity's credential interface, with the embedded Azure's tokens: for Resource Manager and for storage."""

    def __init__(self, token: str, storage_token: str) -> None:
        self._token = token
        self._storage_token = storage_token

    def get_token(self, *scopes: str, **kwargs: Any) -> Any:
        from azure.core.credentials import AccessToken

        return AccessToken(self._storage_token if STORAGE_SCOPE in scopes else self._token, 2**33)


def _azure(clock: Clock, subscription: str | None) -> Session:
    from azure.identity import DefaultAzureCredential

    from cloudtrain.azure import retries

    # What it tried comes as a warning of 20 lines, too; the error below says what to do.
    logging.getLogger("azure.identity").addHandler(logging.NullHandler())
    credential = DefaultAzureCredential()
    with translated("logging in to Azure"):
        credential.get_token(ARM_SCOPE)
    options = {"transport": _transport(clock, retries.AZURE)}
    return Session(
        cloud=AZURE,
        name="Azure",
        subscription_id=subscription or _only_subscription(credential, options),
        credential=credential,
        login=_login_of(credential),
        principal=lambda: _principal_in(credential.get_token(ARM_SCOPE).token),
        price_list="Azure Retail Prices API",
        client_options=options,
        pace=retries.AZURE,
        defaults=Defaults(),
        capabilities=Capabilities(
            notice=False, published_images=True, ssh=True, bills=True, poll_seconds=AZURE_POLL_SECONDS
        ),
        caller_address=lambda: _address_in(credential.get_token(ARM_SCOPE).token),
        close=credential.close,
    )


def _own_policies() -> list[Any]:
    from cloudtrain.azure.policies import NoRegistration

    return [NoRegistration()]


def _login_of(credential: Any) -> str:
    """Which of DefaultAzureCredential's it was: azure-identity 1.27 tells that to its log and keeps it here."""
    used = getattr(credential, "_successful_credential", None)
    return type(used).__name__ if used is not None else type(credential).__name__


def _principal_in(token: str) -> tuple[str, str]:
    """Whom a token stands for. It is ours to read and not to check: Azure does. Only a token that a person's login got
    has the claim `scp` (Microsoft identity platform, access token claims)."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return str(claims["oid"]), "User" if "scp" in claims else "ServicePrincipal"
    except (IndexError, KeyError, TypeError, ValueError):
        return "", ""


def _address_in(token: str) -> str | None:
    """Where Microsoft Entra saw the login come from: `ipaddr`, a claim of a person's access token."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return str(claims["ipaddr"])
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _only_subscription(credential: Any, options: dict[str, Any]) -> str:
    """The subscription's id where the login sees just one enabled subscription."""
    from azure.core.rest import HttpRequest
    from azure.mgmt.resource.resources import ResourceManagementClient

    # The client wants a subscription; this request does not use it.
    client = ResourceManagementClient(credential, "00000000-0000-0000-0000-000000000000", **options)
    with translated("listing your subscriptions"):
        answer = client.send_request(HttpRequest("GET", "/subscriptions", params={"api-version": "2022-12-01"}))
        answer.raise_for_status()
    enabled = [s for s in answer.json()["value"] if s.get("state") == "Enabled"]
    if len(enabled) == 1:
        return str(enabled[0]["subscriptionId"])
    hint = 'Say --subscription ID, or subscription = "ID" in cloudtrain.toml.'
    if not enabled:
        raise CloudtrainError(
            "NoSubscription", "This login sees no enabled Azure subscription.", hint, Exit.UNREACHABLE
        )
    names = ", ".join(f"{s['displayName']} ({s['subscriptionId']})" for s in enabled)
    raise InvalidSpec(f"This login sees several subscriptions: {names}.", hint, code="SubscriptionNeeded")


def _trainer_command() -> list[str]:
    return _python_module("trainer")


def _python_module(*arguments: str) -> list[str]:
    # The package is found where this one lies, installed or in a checkout.
    return ["/usr/bin/env", f"PYTHONPATH={Path(__file__).parents[2]}", sys.executable, "-m", *arguments]


def _tutorial_command() -> list[str]:
    """The trainer as an image that takes no arguments and saves to its own /app/Saved_Model."""
    env, *command = _trainer_command()
    return [env, "CHECKPOINT_DIR=/app/Saved_Model", *command, *REHEARSAL_ARGUMENTS]


def _python_directories() -> list[Path]:
    """Directories that the trainer's Python needs: the environment, the Python beneath it, and where packages lie."""
    candidates = [sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), *sys.path]
    found = {Path(entry).resolve() for entry in candidates if entry and Path(entry).is_dir()}
    return sorted(path for path in found if not any(other in path.parents for other in found))


def check_image(session: Session, image: str) -> None:
    """Raises where the cloud in use cannot run that trainer image."""
    if session.capabilities.published_images:
        return
    if image != session.defaults.trainer_image:
        raise InvalidSpec(
            f"image: the rehearsal's VMs run the trainer of this Python environment "
            f"('{session.defaults.trainer_image}') and cannot pull '{image}'.",
            "Leave the image out to rehearse; it is used on Azure (--cloud azure).",
        )
    missing = trainer_missing()
    if missing:
        raise Refused(
            "TrainerMissing",
            f"The rehearsal trains in this Python environment, and '{missing}' is not installed in it.",
            "pip install 'cloudtrain[trainer]'  installs the trainer (TensorFlow, about 1.5 GB).",
        )
