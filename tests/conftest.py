"""The blob services that several packages' tests run against."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .emulator.blob_services import Service


@pytest.fixture(scope="session")
def azurite_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Service"]:
    from .emulator.blob_services import azurite, azurite_missing

    missing = azurite_missing()
    if missing:
        pytest.skip(missing)
    with azurite(tmp_path_factory.mktemp("azurite")) as service:
        yield service


@pytest.fixture(scope="session")
def embedded_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Service"]:
    from .emulator.blob_services import embedded
    from .emulator.conftest import open_cloud

    cloud = open_cloud(tmp_path_factory.mktemp("embedded") / "emulator")
    yield embedded(cloud)
    cloud.azure.close()


@pytest.fixture(params=["embedded", pytest.param("azurite", marks=pytest.mark.azurite)])
def blob_service(request: pytest.FixtureRequest) -> "Service":
    """An account of the embedded Azure's, then of Azurite's."""
    found: Service = request.getfixturevalue(f"{request.param}_service")
    return found
