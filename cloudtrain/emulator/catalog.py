"""The embedded Azure's own data: regions, sizes, prices, quotas and VM images.

Shapes and names are Azure's. **The figures are not**: prices are round, list-like numbers that keep the
proportions (Spot at a tenth to a quarter of on-demand), quotas are those of a subscription in ordinary use,
restrictions are invented so that they can be met. Nothing here may be quoted as what Azure costs or offers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Region:
    name: str
    display: str
    zones: tuple[str, ...]
    price_factor: float
    retail_name: str


REGIONS: Mapping[str, Region] = {
    region.name: region
    for region in (
        Region("eastus", "East US", ("1", "2", "3"), 1.00, "US East"),
        Region("eastus2", "East US 2", ("1", "2", "3"), 1.00, "US East 2"),
        Region("southcentralus", "South Central US", ("1", "2", "3"), 1.08, "US South Central"),
        Region("westus", "West US", (), 1.14, "US West"),
        Region("westus2", "West US 2", ("1", "2", "3"), 1.00, "US West 2"),
        Region("westus3", "West US 3", ("1", "2", "3"), 1.02, "US West 3"),
        Region("northeurope", "North Europe", ("1", "2", "3"), 1.09, "EU North"),
        Region("westeurope", "West Europe", ("1", "2", "3"), 1.20, "EU West"),
        Region("swedencentral", "Sweden Central", ("1", "2", "3"), 1.05, "SE Central"),
        Region("japaneast", "Japan East", ("1", "2", "3"), 1.28, "JA East"),
    )
}


@dataclass(frozen=True)
class Size:
    """hourly: the on-demand price in eastus, USD. spot_share: the Spot price as a part of it, 0 when it
    cannot be Spot."""

    name: str
    family: str  # the usage name
    family_display: str
    vcpus: int
    memory_gb: float
    hourly: float
    spot_share: float
    premium: bool = True
    gpus: int = 0
    generations: str = "V1,V2"
    temp_mb: int = 0
    product: str = ""
    missing_in: frozenset[str] = frozenset()
    restricted_in: frozenset[str] = frozenset()  # the whole region
    reason: str = "NotAvailableForSubscription"  # or QuotaId: not for this kind of subscription
    restricted_zones: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def short(self) -> str:
        return self.name.removeprefix("Standard_")

    @property
    def spot(self) -> bool:
        return self.spot_share > 0


_SMALL_REGIONS = frozenset({"westus", "japaneast"})


def _size(
    name: str,
    family: str,
    display: str,
    vcpus: int,
    memory: float,
    hourly: float,
    share: float,
    **rest: object,
) -> Size:
    return Size(name, family, display, vcpus, memory, hourly, share, **rest)  # type: ignore[arg-type]


def _sizes() -> tuple[Size, ...]:
    dv3 = ("standardDSv3Family", "Standard DSv3 Family vCPUs")
    dv5 = ("standardDSv5Family", "Standard DSv5 Family vCPUs")
    das6 = ("standardDav6Family", "Standard Dasv6 Family vCPUs")
    dsv2 = ("standardDSv2Family", "Standard DSv2 Family vCPUs")
    dv2 = ("standardDv2Family", "Standard Dv2 Family vCPUs")
    fsv2 = ("standardFSv2Family", "Standard FSv2 Family vCPUs")
    basic = ("standardBSFamily", "Standard BS Family vCPUs")
    t4 = ("Standard NCASv3_T4 Family", "Standard NCASv3_T4 Family vCPUs")
    v100 = ("standardNCSv3Family", "Standard NCSv3 Family vCPUs")
    a100 = ("StandardNCADSA100v4Family", "Standard NCADS_A100_v4 Family vCPUs")
    h100 = ("StandardNCadsH100v5Family", "Standard NCadsH100v5 Family vCPUs")
    dsv3, dsv5 = "Virtual Machines DSv3 Series", "Virtual Machines Dsv5 Series"
    ncas, bs = "Virtual Machines NCasT4 v3 Series", "Virtual Machines BS Series"
    return (
        _size("Standard_D2s_v3", *dv3, 2, 8, 0.096, 0.20, temp_mb=16384, product=dsv3),
        _size("Standard_D4s_v3", *dv3, 4, 16, 0.192, 0.20, temp_mb=32768, product=dsv3),
        _size("Standard_D8s_v3", *dv3, 8, 32, 0.384, 0.20, temp_mb=65536, product=dsv3),
        _size("Standard_D16s_v3", *dv3, 16, 64, 0.768, 0.20, temp_mb=131072, product=dsv3),
        _size("Standard_D2s_v5", *dv5, 2, 8, 0.096, 0.18, product=dsv5),
        _size("Standard_D4s_v5", *dv5, 4, 16, 0.192, 0.18, product=dsv5),
        _size("Standard_D8s_v5", *dv5, 8, 32, 0.384, 0.18, product=dsv5),
        _size("Standard_D2as_v6", *das6, 2, 8, 0.09, 0.22, generations="V2", missing_in=_SMALL_REGIONS),
        _size("Standard_DS1_v2", *dsv2, 1, 3.5, 0.073, 0.15, temp_mb=7168),
        _size("Standard_DS2_v2", *dsv2, 2, 7, 0.146, 0.15, temp_mb=14336),
        _size("Standard_D1_v2", *dv2, 1, 3.5, 0.073, 0.15, premium=False, generations="V1", temp_mb=51200),
        _size("Standard_D2_v2", *dv2, 2, 7, 0.146, 0.15, premium=False, generations="V1", temp_mb=102400),
        _size("Standard_F2s_v2", *fsv2, 2, 4, 0.085, 0.20, temp_mb=16384),
        _size("Standard_F4s_v2", *fsv2, 4, 8, 0.169, 0.20, temp_mb=32768),
        _size("Standard_F16s_v2", *fsv2, 16, 32, 0.677, 0.20, temp_mb=131072),
        _size("Standard_B1s", *basic, 1, 1, 0.0104, 0, temp_mb=4096, product=bs),
        _size("Standard_B2s", *basic, 2, 4, 0.0416, 0, temp_mb=8192, product=bs),
        _size("Standard_B2ms", *basic, 2, 8, 0.0832, 0, temp_mb=16384, product=bs),
        _size("Standard_B20ms", *basic, 20, 80, 0.832, 0, temp_mb=163840, product=bs),
        _size(
            "Standard_NC4as_T4_v3", *t4, 4, 28, 0.526, 0.18, gpus=1, temp_mb=180224, product=ncas,
            restricted_zones={"eastus": ("3",)},
        ),
        _size("Standard_NC8as_T4_v3", *t4, 8, 56, 0.752, 0.18, gpus=1, temp_mb=360448, product=ncas),
        _size(
            "Standard_NC16as_T4_v3", *t4, 16, 110, 1.204, 0.18, gpus=1, temp_mb=360448, product=ncas,
            restricted_zones={"southcentralus": ("3",)},
        ),
        _size("Standard_NC64as_T4_v3", *t4, 64, 440, 4.352, 0.18, gpus=4, temp_mb=2883584, product=ncas),
        _size(
            "Standard_NC6s_v3", *v100, 6, 112, 3.06, 0.25, gpus=1, temp_mb=344064,
            missing_in=frozenset({"swedencentral", "japaneast"}),
            restricted_in=frozenset({"eastus", "westeurope"}),
        ),
        _size(
            "Standard_NC24ads_A100_v4", *a100, 24, 220, 3.673, 0.24, gpus=1, generations="V2", temp_mb=65536,
            missing_in=frozenset({"westus"}), restricted_in=frozenset({"northeurope", "japaneast"}),
        ),
        _size(
            "Standard_NC40ads_H100_v5", *h100, 40, 320, 6.98, 0.25, gpus=1, generations="V2", temp_mb=131072,
            missing_in=frozenset({"westus", "northeurope", "japaneast", "swedencentral"}),
            restricted_in=frozenset({"eastus"}), reason="QuotaId",
        ),
    )  # fmt: skip


SIZES: Mapping[str, Size] = {size.name.lower(): size for size in _sizes()}


def sizes_in(region: str) -> list[Size]:
    return [size for size in SIZES.values() if region.lower() not in size.missing_in]


def size_in(region: str, name: str) -> Size | None:
    size = SIZES.get(name.lower())
    return size if size is not None and region.lower() not in size.missing_in else None


def on_demand_price(size: Size, region: str) -> float:
    """USD an hour. The emulator's own figure."""
    return round(size.hourly * REGIONS[region.lower()].price_factor, 4)


def spot_price(size: Size, region: str) -> float:
    """USD an hour. The emulator's own figure."""
    return round(on_demand_price(size, region) * size.spot_share, 5)


# Since when the price list says so: when these figures were written down.
PRICES_OF = "2026-11-24"

DEFAULT_SPOT_CORES = 16
FRESH_SPOT_CORES = 3
REGIONAL_CORES = 100
FAMILY_CORES = 100
GPU_FAMILY_CORES = 0  # on-demand GPU quota has to be asked for, on Azure too; Spot counts lowPriorityCores only


@dataclass(frozen=True)
class Plan:
    name: str
    product: str
    publisher: str


@dataclass(frozen=True)
class Image:
    """One version of a marketplace or platform image. Only Linux boots here."""

    publisher: str
    offer: str
    sku: str
    version: str
    disk_gb: int
    os_name: str
    os_version: str
    generation: str = "V2"
    plan: Plan | None = None

    @property
    def urn(self) -> str:
        return f"{self.publisher}:{self.offer}:{self.sku}:{self.version}"


def _nvidia(offer: str, sku: str, version: str, disk: int, os_version: str, generation: str = "V2") -> Image:
    return Image("nvidia", offer, sku, version, disk, "ubuntu", os_version, generation, Plan(sku, offer, "nvidia"))


_FORTINET = Plan("fortinet_fg-vm_payg", "fortinet_fortigate-vm_v5", "fortinet")

IMAGES: tuple[Image, ...] = (
    _nvidia("ngc_azure_17_11", "ngc-base-version-25_9_1_gen2", "25.9.1", 64, "22.04"),
    _nvidia("ngc_azure_17_11", "ngc-base-version-24_03_4_gen2", "24.03.4", 64, "22.04"),
    _nvidia("ngc_azure_17_11", "ngc-base-version-22_06_0-gen2", "22.06.0", 64, "20.04"),
    _nvidia("tensorflow_from_nvidia", "ngc-tensorflow-version-21-11-0", "21.11.0", 64, "20.04", "V1"),
    _nvidia("tensorflow_from_nvidia", "gen2_21-06-0", "21.06.0", 64, "20.04"),
    Image("microsoft-dsvm", "ubuntu-hpc", "2204", "22.04.2025120401", 64, "ubuntu", "22.04"),
    Image("microsoft-dsvm", "ubuntu-hpc", "2204", "22.04.2026062201", 64, "ubuntu", "22.04"),
    Image("microsoft-dsvm", "ubuntu-hpc", "2404", "24.04.2026062201", 64, "ubuntu", "24.04"),
    Image("microsoft-dsvm", "ubuntu-hpc", "2204-v100", "22.04.2026062201", 64, "ubuntu", "22.04"),
    Image(
        "Canonical",
        "0001-com-ubuntu-server-jammy",
        "22_04-lts-gen2",
        "22.04.202606120",
        30,
        "ubuntu",
        "22.04",
    ),
    Image(
        "Canonical",
        "0001-com-ubuntu-server-jammy",
        "22_04-lts",
        "22.04.202606120",
        30,
        "ubuntu",
        "22.04",
        "V1",
    ),
    Image("Canonical", "ubuntu-24_04-lts", "server", "24.04.202606170", 30, "ubuntu", "24.04"),
    Image("Canonical", "UbuntuServer", "16.04-LTS", "16.04.202109281", 30, "ubuntu", "16.04", "V1"),
    Image("OpenLogic", "CentOS", "7.5", "7.5.201808150", 30, "centos", "7.5.1804", "V1"),
    Image(
        "fortinet",
        "fortinet_fortigate-vm_v5",
        "fortinet_fg-vm_payg",
        "5.6.5",
        2,
        "fortios",
        "5.6",
        "V1",
        _FORTINET,
    ),
)

ACCEPTED_BY_DEFAULT: tuple[Plan, ...] = tuple(
    {image.plan for image in IMAGES if image.plan is not None and image.plan.product == "ngc_azure_17_11"}
)


def images(publisher: str, offer: str, sku: str) -> list[Image]:
    """The versions of one SKU, oldest first."""
    wanted = (publisher.lower(), offer.lower(), sku.lower())
    return [i for i in IMAGES if (i.publisher.lower(), i.offer.lower(), i.sku.lower()) == wanted]


def find_image(publisher: str, offer: str, sku: str, version: str) -> Image | None:
    versions = images(publisher, offer, sku)
    if version.lower() == "latest":
        return versions[-1] if versions else None
    return next((image for image in versions if image.version == version), None)
