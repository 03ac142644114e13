"""The index of runs: a hint that survives kills and damage, and the run's own SSH key pair."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from cloudtrain import runs
from cloudtrain.errors import CloudtrainError

from .conftest import REPOSITORY


def hint(cloud: str = "embedded", created: str = "2026-01-01T00:00:00+00:00") -> runs.Hint:
    return runs.Hint(cloud, None, "eastus", "cloudtrain-horses", created)


def private(place: Path) -> RSAPrivateKey:
    key = load_ssh_private_key((place / "id_rsa").read_bytes(), password=None)
    assert isinstance(key, RSAPrivateKey)
    return key


def test_what_is_remembered_is_known_until_it_is_forgotten(tmp_path: Path) -> None:
    runs.remember(tmp_path, "horses", hint())
    assert runs.clouds_of(tmp_path, "horses") == ["embedded"]
    assert runs.recall(tmp_path, "embedded", "horses") == hint()
    assert runs.known_runs(tmp_path, "embedded") == ["horses"]
    runs.key_pair(tmp_path, "embedded", "horses")
    for _ in range(2):
        runs.forget(tmp_path, "embedded", "horses")
        assert runs.clouds_of(tmp_path, "horses") == []
    assert list((tmp_path / "runs" / "embedded").iterdir()) == []


def test_a_run_keeps_the_date_of_its_first_up(tmp_path: Path) -> None:
    runs.remember(tmp_path, "horses", hint())
    runs.remember(tmp_path, "horses", hint(created="2027-01-01T00:00:00+00:00"))
    kept = runs.recall(tmp_path, "embedded", "horses")
    assert kept is not None and kept.created == "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"cloud": 3}', json.dumps({"x": 1}).encode()])
def test_a_damaged_entry_still_tells_the_cloud_and_is_mended(tmp_path: Path, damage: bytes) -> None:
    runs.remember(tmp_path, "horses", hint())
    (runs.directory(tmp_path, "embedded", "horses") / "run.json").write_bytes(damage)
    assert runs.recall(tmp_path, "embedded", "horses") is None
    assert runs.clouds_of(tmp_path, "horses") == ["embedded"]
    runs.remember(tmp_path, "horses", hint())
    assert runs.recall(tmp_path, "embedded", "horses") == hint()


def test_the_key_pair_is_private_belongs_together_and_stays(tmp_path: Path) -> None:
    path, line = runs.key_pair(tmp_path, "embedded", "horses")
    assert path.stat().st_mode & 0o777 == 0o600
    assert all(level.stat().st_mode & 0o777 == 0o700 for level in list(path.parents)[:3])
    key = private(path.parent)
    assert key.key_size == 3072
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert line.startswith(public + " ")
    assert runs.key_pair(tmp_path, "embedded", "horses") == (path, line)


def test_a_lost_public_half_comes_back_from_the_private_one(tmp_path: Path) -> None:
    path, line = runs.key_pair(tmp_path, "embedded", "horses")
    for damage in (None, b"", b"\xff", b"ssh-rsa AAAA"):
        public = path.with_suffix(".pub")
        public.unlink() if damage is None else public.write_bytes(damage)
        assert runs.key_pair(tmp_path, "embedded", "horses")[1].split()[:2] == line.split()[:2]


def test_a_pair_without_its_private_half_is_made_anew(tmp_path: Path) -> None:
    path, line = runs.key_pair(tmp_path, "embedded", "horses")
    path.unlink()
    assert runs.key_pair(tmp_path, "embedded", "horses")[1] != line
    assert private(path.parent)


def test_commands_at_the_same_time_share_one_pair(tmp_path: Path) -> None:
    lines: list[str] = []
    threads = [
        threading.Thread(target=lambda: lines.append(runs.key_pair(tmp_path, "embedded", "horses")[1]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines) == 4 and len(set(lines)) == 1


def test_killed_while_writing_it_leaves_a_whole_entry_or_none(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from pathlib import Path\nfrom cloudtrain import runs\n"
        f"home = Path({str(tmp_path)!r})\n"
        "print('begun', flush=True)\n"
        "while True:\n"
        "    runs.remember(home, 'horses', runs.Hint('embedded', None, 'eastus', 'g' * 3000, 'now'))\n"
    )
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        known = runs.recall(tmp_path, "embedded", "horses")
        assert known is None or known.resource_group == "g" * 3000
        assert runs.clouds_of(tmp_path, "horses") == (["embedded"] if known else [])


def test_a_file_in_the_place_of_a_directory_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(CloudtrainError, match="is a file"):
        runs.remember(tmp_path, "horses", hint())
    assert runs.clouds_of(tmp_path, "horses") == []
