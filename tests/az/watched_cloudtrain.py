"""`cloudtrain`, with every answer of the embedded Azure held against the SDK's models: python -m ... FILE ARGUMENTS.

FILE gets what broke the contract, a JSON list; `az` itself sends what it likes, in older api-versions."""

import json
import sys
from pathlib import Path

import pytest

from cloudtrain.cli import main
from tests.emulator.contract import OPERATIONS, differences
from tests.emulator.watched import watch

if __name__ == "__main__":
    told = Path(sys.argv.pop(1))
    watched = watch(pytest.MonkeyPatch())
    try:
        main()
    finally:
        broken = {one for exchange in watched.exchanges for one in differences(exchange, request=False)}
        broken |= {
            f"{operation or 'something'} has no contract" for operation in watched.operations() - set(OPERATIONS)
        }
        told.write_text(json.dumps(sorted(broken)))
