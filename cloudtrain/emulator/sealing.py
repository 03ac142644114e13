"""What must never be readable in the database: kept encrypted, for as long as it takes to hand it to a
machine."""

import json
import os
from pathlib import Path

from cloudtrain.emulator.store import Json


def _key(path: Path) -> bytes:
    """The key of this store, made on first use; whichever process links its file first has made it."""
    from cryptography.fernet import Fernet

    if not path.exists():
        new = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(Fernet.generate_key())
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        new.unlink()
    return path.read_bytes()


def seal(path: Path, content: Json) -> bytes:
    from cryptography.fernet import Fernet

    return Fernet(_key(path)).encrypt(json.dumps(content).encode())


def unseal(path: Path, sealed: bytes | None) -> Json:
    """{} for nothing."""
    if sealed is None:
        return {}
    from cryptography.fernet import Fernet

    content: Json = json.loads(Fernet(_key(path)).decrypt(sealed))
    return content
