"""Whatever is tested of the rooms that speak to Azure, they speak as the SDK's models do."""

from collections.abc import Iterator

import pytest

from tests.emulator.contract import differences
from tests.emulator.watched import watch


@pytest.fixture(autouse=True)
def to_the_letter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    watched = watch(monkeypatch)
    yield
    broken = {one for exchange in watched.exchanges for one in differences(exchange)}
    assert not broken, "\n".join(sorted(broken))
