"""Work that does not depend on each other, side by side."""

import threading
from collections.abc import Callable
from typing import Any


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Run every job in a thread of its own; their results in order. The first job's error, in order, is raised once all
    have ended. Daemon threads: Ctrl-C need not wait for Azure."""
    results: list[Any] = [None] * len(jobs)
    errors: list[BaseException | None] = [None] * len(jobs)

    def work(index: int) -> None:
        try:
            results[index] = jobs[index]()
        except BaseException as error:  # noqa: BLE001  # handed to the caller's thread below
            errors[index] = error

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if error is not None:
            raise error
    return results
