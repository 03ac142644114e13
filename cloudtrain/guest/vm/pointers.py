"""The pointer: what a new VM goes on from, as cloudtrain/guest/durable.py reads it."""

import json
from typing import Any


def stored(path: str, blob: str, size: int, md5: str) -> dict[str, Any]:
    return {"path": path, "blob": blob, "size": size, "md5": md5}


def blobs_of(pointer: dict[str, Any]) -> set[str]:
    kept = [pointer.get("newest"), *(pointer.get("previous") or [])]
    return {file["blob"] for each in kept if each for file in each["files"]}


def whole_in(remote: dict[str, tuple[int, str]], checkpoint: dict[str, Any]) -> bool:
    return all(remote.get(file["blob"]) == (file["size"], file["md5"]) for file in checkpoint["files"])


def older(each: dict[str, Any], newest: dict[str, Any]) -> bool:
    """Whether it is a checkpoint to fall back to from the newest."""
    if bool(each["name"]) != bool(newest["name"]):
        return False  # the image keeps checkpoints now, or does not any more
    if each["name"] and each["name"] == newest["name"]:
        return False
    if each["step"] is None or newest["step"] is None:
        return bool(each["files"] != newest["files"])
    return bool(each["step"] < newest["step"])


def pointer_in(found: Any) -> dict[str, Any]:
    """What the blob says; {} where there is none. Raises ValueError for what is no pointer."""
    if found is None:
        return {}
    try:
        told = json.loads(found.body)
        for each in (told.get("newest"), *(told.get("previous") or [])):
            for file in each["files"] if each is not None else ():
                str(file["path"]), str(file["blob"]), int(file["size"]), str(file["md5"]), each["name"], each["step"]
        return dict(told)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("not a pointer") from error
