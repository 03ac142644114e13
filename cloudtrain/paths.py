"""Where cloudtrain writes on this machine: everything lies under one directory, private to the user."""

import os
from pathlib import Path


def home() -> Path:
    """`$CLOUDTRAIN_HOME`, else the user's data directory (`~/.local/share/cloudtrain` on Linux). Made on first use."""
    configured = os.environ.get("CLOUDTRAIN_HOME")
    if configured:
        path = Path(configured).expanduser().absolute()
    else:
        from platformdirs import user_data_path

        path = user_data_path("cloudtrain")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
