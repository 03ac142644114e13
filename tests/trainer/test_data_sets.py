"""Data sets through TFDS' own code: ours, theirs, and what happens without a network."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from trainer import decoded, drawing
from trainer.data import Batches

from .conftest import HERE, Trainer

TINY_MODEL = ("--model", "tiny:model", "--batch-size", "4", "--epochs", "1")


def test_a_silhouette_has_the_same_bytes_everywhere() -> None:
    """The digests were made once; a difference means that old checkpoints and new pictures do not belong."""
    pictures = [drawing.draw(0, split, index, 64)[0] for split in ("train", "test") for index in range(4)]
    assert hashlib.sha256(np.stack(pictures).tobytes()).hexdigest()[:16] == "80660ffaf0f00ae7"
    large, label = drawing.draw(0, "train", 0, 300)
    assert large.shape == (300, 300, 3) and large.dtype == np.uint8 and label == "horses"
    assert (drawing.draw(1, "train", 0, 64)[0] != pictures[0]).any()


def test_an_epoch_is_a_permutation_of_its_own_and_can_be_entered_anywhere() -> None:
    images, labels = np.arange(103)[:, None], np.arange(103)
    batches = Batches(images, labels, batch_size=10, seed=3)
    whole = [labels.tolist() for _, labels in batches.of_epoch(5)]
    assert len(whole) == 10 and len({label for batch in whole for label in batch}) == 100
    for done in range(11):
        assert [labels.tolist() for _, labels in batches.of_epoch(5, done * 10)] == whole[done:]
    assert [labels.tolist() for _, labels in batches.of_epoch(6)] != whole
    assert all((images[:, 0] == labels).all() for images, labels in batches.of_epoch(0))


def test_silhouettes_train_mobilenet_through_tfds_and_the_exports_open(trainer: Trainer) -> None:
    job = ("--dataset", "silhouettes", "--image-size", "32", "--batch-size", "16", "--epochs", "1")
    slices = ("--train-split", "train[:160]", "--validation-split", "test[:32]")
    code, output = trainer.run(*job, *slices)
    assert code == 0, output
    assert "silhouettes" in output and "\x1b" not in output
    prepared = trainer.root / "data" / "silhouettes" / "32x32" / "1.0.0"
    assert (prepared / "dataset_info.json").exists()
    look = (
        "import keras, sys\n"
        "for file in sys.argv[1:]:\n"
        "    m = keras.saving.load_model(file)\n"
        "    norms = [l.momentum for l in m.layers if isinstance(l, keras.layers.BatchNormalization)]\n"
        "    scalings = sum(isinstance(l, keras.layers.Rescaling) for l in m.layers)\n"
        "    print('model', m.input_shape, m.output_shape, scalings, sorted(set(norms)))\n"
    )
    exports = [str(trainer.directory / name) for name in ("best.keras", "final.keras")]
    code, output = trainer.run(*exports, program=("-c", look))
    assert code == 0, output
    seen = [line for line in output.splitlines() if line.startswith("model")]
    assert seen == ["model (None, 32, 32, 3) (None, 2) 1 [0.9]"] * 2


def test_any_image_classification_set_of_tfds_is_decoded_and_others_are_refused(trainer: Trainer) -> None:
    code, output = trainer.run(program=(str(HERE / "prepared_sets.py"),))
    assert code == 0, output
    flowers, mnist, notes, captions, unlabelled, no_split, silhouettes = (
        json.loads(line) for line in output.splitlines() if line.startswith('{"name"')
    )
    # Without a split to validate on, the last tenth is held out. Every picture has the colour of its label.
    assert (flowers["train"], flowers["validation"]) == (["uint8", [36, 24, 16, 3], []], ["uint8", [4, 24, 16, 3], []])
    assert "tf_flowers/3.0.1 train[:90%] train[90%:] 24x16" in flowers["identity"] and flowers["classes"] == 5
    assert mnist["train"] == mnist["validation"] == ["uint8", [10, 28, 28, 3], []]
    assert notes["train"] == ["uint8", [3, 8, 8, 3], []] and "first val 8x8" in notes["identity"]
    assert "expected one Image and one ClassLabel" in captions["refused"] and "label (Text)" in captions["refused"]
    assert "'test' of half_labelled" in unlabelled["refused"] and "--validation-split" in unlabelled["refused"]
    assert "no split 'holdout'" in no_split["refused"] and "train, test" in no_split["refused"]
    assert silhouettes["name"] == "silhouettes/300x300/1.0.0"
    assert not [path for path in (trainer.root / "data" / "decoded").iterdir() if path.name.endswith(".tmp")]

    code, output = trainer.run("--dataset", "tf_flowers", "--image-size", "24x16", *TINY_MODEL)
    assert code == 0, output
    assert trainer.progress()["total_steps"] == 9 and trainer.progress()["dataset"] == "tf_flowers"


def test_a_data_set_that_does_not_fit_into_memory_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3), np.uint8)
    labels = np.arange(50, dtype=np.int32)
    with decoded.Writer(tmp_path / "set") as writer:
        for part in decoded.PARTS:
            halves = (slice(0, 30), slice(30, 50))
            writer.split(part, 50, (6, 5, 3), iter([(pictures[half], labels[half]) for half in halves]))
        writer.publish("mine", "mine/1", ("a",))
    in_memory = decoded.read(tmp_path / "set")
    monkeypatch.setattr(decoded, "available_memory", lambda: 1000)
    mapped = decoded.read(tmp_path / "set")
    assert in_memory is not None and not isinstance(in_memory.train.images, np.memmap)
    assert mapped is not None and isinstance(mapped.train.images, np.memmap)
    assert mapped.identity == in_memory.identity and "mine/1 content " in mapped.identity
    for split in (in_memory.train, mapped.train, mapped.validation):
        batches = Batches(split.images, split.labels, batch_size=7, seed=1)
        assert all(np.array_equal(images, pictures[chosen]) for images, chosen in batches.of_epoch(0))


# --- horses_or_humans, as TFDS downloads it -----------------------------------------------------------------


def archive(count: int, seed: int) -> bytes:
    """A zip laid out as the real one: horses/*.png, humans/*.png, 300x300."""
    pil = pytest.importorskip("PIL.Image")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for index in range(count):
            picture, label = drawing.draw(seed, "train", index, 300)
            png = io.BytesIO()
            pil.fromarray(picture).save(png, "png", compress_level=1)
            file.writestr(f"{label}/{label[:-1]}{index:02}-1.png", png.getvalue())
    return content.getvalue()


class Host(BaseHTTPRequestHandler):
    """Serves archives; of one the first half comes, unless a range is asked for. A large one comes slowly."""

    LARGE: ClassVar = 100 << 18
    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[tuple[str, str | None]]] = []
    sent: ClassVar[int] = 0  # bytes of the large one

    def do_GET(self) -> None:
        if self.path not in self.files:
            while not Host.sent:
                time.sleep(0.05)
            return  # without a word
        content, wanted = self.files[self.path], self.headers.get("Range")
        self.asked.append((self.path, wanted))
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if len(content) == self.LARGE:
            self.send_slowly(content)
            return
        broken = self.path == "/horse-or-human.zip" and not wanted
        self.wfile.write(content[begin : len(content) // 2 if broken else len(content)])

    def send_slowly(self, content: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(content), 1 << 18):
                self.wfile.write(content[at : at + (1 << 18)])
                Host.sent = at + (1 << 18)
                time.sleep(0.3)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def host() -> Iterator[str]:
    Host.files = {"/horse-or-human.zip": archive(12, 0), "/validation-horse-or-human.zip": archive(4, 1)}
    Host.asked, Host.sent = [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def from_host(trainer: Trainer, address: str) -> tuple[int, str]:
    """`python -m trainer`, with the addresses in TFDS' builder leading to `address`."""
    driver = (
        "import sys; from tensorflow_datasets.image_classification import horses_or_humans as module\n"
        f"module._TRAIN_URL = '{address}/horse-or-human.zip'\n"
        f"module._TEST_URL = '{address}/validation-horse-or-human.zip'\n"
        "from trainer import download; download.PAUSES = (0.01, 0.01)\n"
        "from trainer.__main__ import main; sys.exit(main(sys.argv[1:]))\n"
    )
    return trainer.run("--dataset", "horses_or_humans", "--image-size", "24", *TINY_MODEL, program=("-c", driver))


def test_horses_or_humans_is_downloaded_although_the_connection_breaks(trainer: Trainer, host: str) -> None:
    code, output = from_host(trainer, host)
    assert code == 0, output
    assert "horse-or-human.zip: the connection broke after" in output, output
    assert "trying again" in output
    assert "downloading horse-or-human.zip: " in output and "MB" in output
    assert any(wanted for _, wanted in Host.asked), "it began anew instead of going on"
    info = (trainer.root / "data/horses_or_humans/3.0.0/dataset_info.json").read_text()
    assert '"12"' in info and '"4"' in info
    progress = trainer.progress()
    assert progress["finished"] and progress["total_steps"] == 3


def test_without_a_network_the_error_names_silhouettes(trainer: Trainer) -> None:
    code, output = from_host(trainer, "http://127.0.0.1:9")
    assert code == 1
    last = output.strip().splitlines()[-2:]
    assert last[0].startswith("error: the data set horses_or_humans could not be downloaded")
    assert "--dataset silhouettes" in last[1] and "Traceback" not in output


def test_a_file_that_cannot_be_had_ends_the_download_of_the_others(trainer: Trainer, host: str) -> None:
    Host.files = {"/horse-or-human.zip": bytes(Host.LARGE)}  # and the other one is not there
    code, output = from_host(trainer, host)
    assert code == 1
    last = output.strip().splitlines()[-2:]
    assert last[0].startswith("error: the data set horses_or_humans could not be downloaded")
    assert f"{host}/validation-horse-or-human.zip" in last[0] and "--dataset silhouettes" in last[1]
    assert Host.sent < Host.LARGE


def test_an_unknown_data_set_is_refused_with_the_names_that_are_near(trainer: Trainer) -> None:
    code, output = trainer.run("--dataset", "horses_or_human")
    assert code == 2 and "horses_or_humans" in output and "Traceback" not in output
    assert not list(Path(trainer.directory / "checkpoints").iterdir())
