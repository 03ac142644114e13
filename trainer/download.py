"""Downloads for TFDS that show how far they are and go on where they broke off."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, downloader

PAUSES = (1.0, 2.0, 4.0)
BLOCK = 1 << 18
TIMEOUT = 30.0
TOLD_EVERY = 5.0
GONE = (400, 401, 403, 404, 410, 451)


class DownloadFailed(Exception):
    """A file could not be fetched, however often it was tried."""


def make_patient(builder: Any) -> None:
    """Let a TFDS builder fetch its files through `PatientDownloader`.

    TFDS 4.9 tries again when a connection is refused, but not when it breaks in the middle. It has no public
    place for a downloader of one's own: the manager makes its own on first use, unless it is there already.
    """
    make = builder._make_download_manager

    def make_with_patience(**arguments: Any) -> Any:
        manager = make(**arguments)
        manager._DownloadManager__downloader = PatientDownloader(manager._url_infos)
        return manager

    builder._make_download_manager = make_with_patience


class _Together:
    """The files of a data set are fetched at a time: once one is given up, the others end too, and say no more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given_up = threading.Event()
        self._why = ""

    def give_up(self, why: str) -> None:
        """Raises DownloadFailed."""
        with self._lock:
            self._why = self._why or why
            self._given_up.set()
        self.check()

    def check(self) -> None:
        """Raises DownloadFailed, of whichever file it was."""
        if self._given_up.is_set():
            raise DownloadFailed(self._why)

    def tell(self, stream: TextIO, line: str) -> None:
        """In one piece. Raises DownloadFailed."""
        with self._lock:
            self.check()
            stream.write(line + "\n")
            stream.flush()

    def pause(self, seconds: float) -> None:
        """Raises DownloadFailed."""
        self._given_up.wait(seconds)
        self.check()


class PatientDownloader(downloader._Downloader):  # type: ignore[misc]
    """TFDS' downloader with progress, retries, and ranges. `url_infos`: sizes and checksums it knows."""

    def __init__(self, url_infos: Any) -> None:
        super().__init__()
        self._url_infos = url_infos
        self._together = _Together()

    def _sync_download(self, url: str, destination_path: Any, verify: bool = True) -> Any:
        if not url.startswith("http"):
            return super()._sync_download(url, destination_path, verify)
        path = Path(destination_path) / (os.path.basename(url.split("?")[0]) or "download")  # noqa: PTH119
        expected = self._url_infos.get(url)
        for pause in (*PAUSES, None):
            try:
                return _fetch(url, path, verify, expected, self._together)
            except (requests.RequestException, DownloadFailed) as error:
                if pause is None or _is_final(error):
                    self._together.give_up(f"{url}: {_reason(error)}")
                else:
                    line = f"{path.name}: {_reason(error)}; trying again in {pause:.0f} s"
                    self._together.tell(sys.stderr, line)
                    self._together.pause(pause)
        raise AssertionError("unreachable")


def _is_final(error: Exception) -> bool:
    response = getattr(error, "response", None)
    return response is not None and response.status_code in GONE


def _reason(error: Exception) -> str:
    if isinstance(error, requests.ConnectionError):
        return "the host cannot be reached"
    return "the host does not answer" if isinstance(error, requests.Timeout) else str(error)


def _fetch(url: str, path: Path, verify: bool, expected: Any, together: _Together) -> Any:
    """Fetch what is still missing of `url`; returns TFDS' result. The server may not know ranges."""
    have = path.stat().st_size if path.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, headers=headers, stream=True, verify=verify, timeout=TIMEOUT) as answer:
        if have and answer.status_code == requests.codes.requested_range_not_satisfiable:
            path.unlink()
            raise DownloadFailed("the server has another file now")
        answer.raise_for_status()
        appending = answer.status_code == requests.codes.partial_content
        total = int(answer.headers.get("Content-Length", 0)) + (have if appending else 0)
        _receive(answer, path, have if appending else 0, total, together)
    return _checked(path, total, expected)


def _receive(answer: requests.Response, path: Path, have: int, total: int, together: _Together) -> None:
    told = time.monotonic()
    with path.open("ab" if have else "wb") as file:
        try:
            for block in answer.iter_content(BLOCK):
                together.check()
                file.write(block)
                have += len(block)
                if time.monotonic() - told > TOLD_EVERY or have == total:
                    told = time.monotonic()
                    together.tell(sys.stdout, f"downloading {path.name}: {_mb(have)} of {_mb(total)} MB")
        except requests.RequestException as error:
            raise DownloadFailed(f"the connection broke after {_mb(have)} of {_mb(total)} MB") from error


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}" if size else "?"


def _checked(path: Path, total: int, expected: Any) -> Any:
    size = path.stat().st_size
    if total and size != total:
        path.unlink()
        raise DownloadFailed(f"{_mb(size)} MB came instead of {_mb(total)}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected is not None and digest != expected.checksum:
        path.unlink()
        raise DownloadFailed("what came is not what TFDS expects (checksum)")
    info = checksums.UrlInfo(
        checksum=digest,
        size=tfds.core.utils.Size(size),
        filename=expected.filename if expected else path.name,
    )
    return downloader.DownloadResult(path=tfds.core.Path(path), url_info=info)
