"""Blobs brought home: whole, verified, and going on where an interrupted fetch was. Against both blob services."""

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from azure.storage.blob import ContainerClient, ContentSettings

from cloudtrain.azure import blobs
from cloudtrain.errors import CloudtrainError, Refused

from ..emulator.blob_services import Service


@pytest.fixture
def container(blob_service: Service) -> ContainerClient:
    return blob_service.keyed().create_container(f"c-{uuid.uuid4().hex}")


def noise(size: int) -> bytes:
    return hashlib.shake_128(str(size).encode()).digest(size)


def fetch_all(
    container: Any, prefix: str, directory: Path, received: Callable[[int], None] = lambda count: None
) -> blobs.Listing:
    listing = blobs.listed(container, prefix)
    for path, blob in listing.files.items():
        blobs.fetch(container, blob, directory / path, received)
    return listing


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_blobs_come_home_under_their_names(container: ContainerClient, tmp_path: Path) -> None:
    sent = {"log.txt": b"begun\n", "checkpoints/0001/weights": noise(300_000), "checkpoints/0001/empty": b""}
    for name, data in sent.items():
        container.upload_blob(f"models/{name}", data)
    container.upload_blob("elsewhere", b"x")
    counted: list[int] = []
    fetched = fetch_all(container, "models/", tmp_path, counted.append)
    assert files(tmp_path) == sent
    assert (len(fetched.files), fetched.refused) == (3, [])
    assert sum(counted) == 300_006
    fetch_all(container, "models/", tmp_path, counted.append)
    assert sum(counted) == 300_006  # what is here, whole, is not fetched again


def test_an_interrupted_fetch_goes_on_where_it_was(container: ContainerClient, tmp_path: Path) -> None:
    data = noise(9_000_000)
    container.upload_blob("b", data)
    (blob,) = blobs.list_blobs(container)
    target, had = tmp_path / "b", 0

    def cut(count: int) -> None:
        nonlocal had
        had += count
        if had > 4_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blobs.fetch(container, blob, target, cut)
    assert not target.exists()
    (part,) = tmp_path.iterdir()
    kept = part.stat().st_size
    assert kept > 0
    counted: list[int] = []
    blobs.fetch(container, blob, target, counted.append)
    assert counted[0] == kept  # told as received already
    assert target.read_bytes() == data
    assert list(tmp_path.iterdir()) == [target]


def test_a_part_that_a_power_cut_spoilt_is_never_taken_for_the_blob(container: ContainerClient, tmp_path: Path) -> None:
    container.upload_blob("b", noise(100_000))
    (blob,) = blobs.list_blobs(container)
    target = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        blobs.fetch(container, blob, target, _interrupt)
    (part,) = tmp_path.iterdir()
    part.write_bytes(bytes(60_000))  # the file had its length, and not its bytes
    with pytest.raises(CloudtrainError) as damaged:
        blobs.fetch(container, blob, target)
    assert damaged.value.code == "DamagedBlob"
    blobs.fetch(container, blob, target)  # the next one begins anew
    assert target.read_bytes() == noise(100_000)


def _interrupt(count: int) -> None:
    raise KeyboardInterrupt


def test_a_blob_that_is_replaced_meanwhile_is_not_mixed(container: ContainerClient, tmp_path: Path) -> None:
    container.upload_blob("b", noise(9_000_000))
    (old,) = blobs.list_blobs(container)
    with pytest.raises(KeyboardInterrupt):
        blobs.fetch(container, old, tmp_path / "b", _interrupt)
    container.upload_blob("b", noise(8_000_000), overwrite=True)
    with pytest.raises(CloudtrainError) as replaced:
        blobs.fetch(container, old, tmp_path / "b")
    assert replaced.value.code == "BlobReplaced"
    fetch_all(container, "", tmp_path)
    assert files(tmp_path) == {"b": noise(8_000_000)}


def test_a_blob_with_another_checksum_is_refused(container: ContainerClient, tmp_path: Path) -> None:
    wrong = ContentSettings(content_md5=bytearray(hashlib.md5(b"other", usedforsecurity=False).digest()))
    blob = container.get_blob_client("b")
    blob.upload_blob(b"content")
    blob.set_http_headers(wrong)
    with pytest.raises(CloudtrainError) as damaged:
        fetch_all(container, "", tmp_path)
    assert damaged.value.code == "DamagedBlob"
    assert files(tmp_path) == {}


def test_names_that_are_no_paths_are_refused(container: ContainerClient, tmp_path: Path) -> None:
    for name in ("m/.hidden/x", "m//empty", "m/good", "m/sub/.part"):
        container.upload_blob(name, b"x")
    fetched = fetch_all(container, "m/", tmp_path)
    assert files(tmp_path) == {"good": b"x"}
    assert sorted(fetched.refused) == ["m/.hidden/x", "m//empty", "m/sub/.part"]


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/absolute", "a\\b", "a/\x00", ".", "n" * 240])
def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    # HTTP clients take dots out of a URL before they send it; an attacker's own client need not.
    class Listing:
        def list_blobs(self, name_starts_with: str) -> list[SimpleNamespace]:
            return [SimpleNamespace(name=name, size=1, etag="e", content_settings=SimpleNamespace(content_md5=None))]

    assert fetch_all(Listing(), "", tmp_path / "inside").refused == [name]
    assert files(tmp_path) == {}


def test_a_signature_that_is_over_is_one_clear_error(
    blob_service: Service, container: ContainerClient, tmp_path: Path
) -> None:
    stranger = blob_service.client(query="sv=2026-10-06&sr=c&sp=rl&se=2020-01-01T00:00:00Z&sig=AAAA")
    with pytest.raises(Refused) as refusal:
        fetch_all(stranger.get_container_client(container.container_name), "", tmp_path)
    assert refusal.value.code == blob_service.not_authentic[1]
    assert "sig=" not in refusal.value.message


def test_a_blob_that_is_deleted_meanwhile_is_told_apart_from_damage(container: ContainerClient, tmp_path: Path) -> None:
    container.upload_blob("b", noise(1000))
    (old,) = blobs.list_blobs(container)
    container.delete_blob("b")
    with pytest.raises(CloudtrainError) as gone:
        blobs.fetch(container, old, tmp_path / "b")
    assert gone.value.code == blobs.REPLACED
    assert files(tmp_path) == {}


def test_a_growing_blob_is_read_on_from_anywhere(container: ContainerClient) -> None:
    assert blobs.read(container, "log") is None
    log = container.get_blob_client("log")
    log.create_append_blob()
    assert blobs.read(container, "log") == b""
    log.append_block(b"one")
    assert [blobs.read(container, "log", begin) for begin in (0, 1, 3, 9)] == [b"one", b"ne", b"", b""]
    log.append_block(b"two")
    assert blobs.read(container, "log", 3) == b"two"
    with pytest.raises(Refused) as refusal:
        blobs.read(container._get_blob_service_client().get_container_client("no-such"), "log")
    assert refusal.value.code == "ContainerNotFound"
