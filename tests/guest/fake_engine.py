"""Keeps one container of fake_docker.py: runs it, and records its end. argv: FOLDER, then the command."""

import os
import subprocess
import sys
from pathlib import Path

folder = Path(sys.argv[1])
(folder / "keeper").write_text(str(os.getpid()))
with (folder / "log").open("ab") as log:
    child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
(folder / "pid").write_text(str(child.pid))
code = child.wait()
end = folder / ".exit"
end.write_text(str(128 - code if code < 0 else code))
end.rename(folder / "exit")
