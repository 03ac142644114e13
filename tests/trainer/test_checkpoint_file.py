"""The checkpoint file: whole or refused, whatever happens to it."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trainer import checkpoint

DTYPES = st.sampled_from(["float32", "float64", "float16", "int64", "int32", "uint8", "bool"])
ARRAYS = DTYPES.flatmap(lambda name: arrays.arrays(np.dtype(name), arrays.array_shapes(min_dims=0, min_side=0)))
TENSORS = st.dictionaries(st.text(max_size=20), ARRAYS, max_size=5)
META = st.fixed_dictionaries({"step": st.integers(0, 10**9), "note": st.text(max_size=20)})


def save(directory: Path, step: int, size: int = 1000) -> Path:
    path = directory / checkpoint.file_name(step)
    checkpoint.write(path, {"step": step}, [("weights", np.full(size, step, np.int64))])
    return path


@given(tensors=TENSORS, meta=META)
@settings(max_examples=60, deadline=None)
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any], meta: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("c") / "0000000001.ckpt"
    checkpoint.write(path, meta, list(tensors.items()))
    answer = checkpoint.read(path)
    assert answer.meta == meta
    assert checkpoint.digest(list(answer.tensors.items())) == checkpoint.digest(list(tensors.items()))


def test_bfloat16_survives(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(7).astype(ml_dtypes.bfloat16)
    checkpoint.write(tmp_path / "0000000001.ckpt", {}, [("w", array)])
    answer = checkpoint.read(tmp_path / "0000000001.ckpt").tensors["w"]
    assert answer.dtype == array.dtype and np.array_equal(answer, array)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_cut_or_changed_file_is_never_taken_for_a_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = save(tmp_path_factory.mktemp("c"), 5, size=20)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(checkpoint.Damaged):
        checkpoint.read(path)


def test_the_newest_whole_one_is_read_and_damaged_ones_are_set_aside(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    (tmp_path / "0000000040.ckpt").write_bytes(b"")
    (tmp_path / "0000000030.ckpt").write_bytes((tmp_path / "0000000030.ckpt").read_bytes()[:-1])
    newest, damaged = checkpoint.newest(tmp_path)
    assert newest is not None and newest.meta["step"] == 20
    assert [line.split()[0] for line in damaged] == ["0000000040.ckpt", "0000000030.ckpt"]
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["0000000010.ckpt", "0000000020.ckpt"]
    assert checkpoint.newest(tmp_path)[1] == []


def test_hidden_and_foreign_names_are_not_read(tmp_path: Path) -> None:
    save(tmp_path, 7)
    for name in (".0000000009.ckpt.12.tmp", ".damaged-0000000009.ckpt", "notes.txt", "0000000009.keras"):
        (tmp_path / name).write_bytes(b"x")
    newest, damaged = checkpoint.newest(tmp_path)
    assert newest is not None and newest.meta["step"] == 7 and not damaged


def test_a_directory_that_is_not_there_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nowhere") == (None, [])


def test_killed_at_any_moment_of_saving_the_newest_checkpoint_loads(tmp_path: Path) -> None:
    chance = random.Random(0)
    torn = 0
    for _ in range(40):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            for step in range(1, 10_000):
                save(tmp_path, step, size=100_000)
                if step == 1:
                    os.write(writing, b"saved")
                if step > 2:
                    (tmp_path / checkpoint.file_name(step - 2)).unlink(missing_ok=True)
            os._exit(0)
        os.close(writing)
        assert os.read(reading, 5) == b"saved"
        os.close(reading)
        time.sleep(chance.uniform(0.0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        torn += any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
        newest, damaged = checkpoint.newest(tmp_path)
        assert newest is not None and not damaged
        assert (newest.tensors["weights"] == newest.meta["step"]).all()
        for path in tmp_path.iterdir():
            path.unlink()
    assert torn > 0, "no kill came in the middle of a save: this test shows nothing"
