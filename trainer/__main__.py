"""python -m trainer: from flags to a trained model, however often it is interrupted."""

from __future__ import annotations

import gc
import importlib.util
import io
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from trainer import progress
from trainer.directory import Directory, open_directory
from trainer.errors import FAILED, FINISHED, Refused, TrainerError
from trainer.journal import Journal, before_first_step
from trainer.options import Options, parse
from trainer.stop import StopRequest

if TYPE_CHECKING:
    from trainer.decoded import Dataset
    from trainer.run import Restored

NEEDED = ("numpy", "tensorflow", "keras", "tensorflow_datasets")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the flags say. Returns the exit code; raises SystemExit when asked to stop."""
    stop = StopRequest()
    stop.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # container.log is followed while it is written
    options = parse(arguments)
    try:
        _require_packages()
        return _train(options, stop)
    except TrainerError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code


def _require_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        hint = "pip install 'cloudtrain[trainer]'"
        raise TrainerError(f"the trainer needs {', '.join(missing)}, not installed here", hint=hint)


def _train(options: Options, stop: StopRequest) -> int:
    # 1. What can be known without TensorFlow, which takes seconds to import.
    from trainer import run

    directory = open_directory(options.checkpoint_dir)
    journal = Journal(directory.journal)
    stop.before_leaving = lambda: journal.write_from_handler(before_first_step())
    restored = run.find_state(directory, _job(options))
    if _is_finished(directory, restored, options):
        print(f"training in {directory.root} has finished already, at step {restored.position.step}")
        return FINISHED
    imported = threading.Event()
    loading = _begin_to_load(options, imported)

    # 2. TensorFlow, while another thread reads the data. Importing and tracing make a million objects that stay:
    # looking through them for garbage takes a tenth of the whole start. `session.train` switches it on again.
    gc.disable()
    _prepare_environment(options)
    import tensorflow  # noqa: F401  (the slow import; what follows uses it)

    from trainer import session

    # Only now: while tensorflow_datasets is imported, it replaces `import` for every thread.
    imported.set()

    # 3. The network, restored.
    dataset = loading.result()
    _refuse_impossible(options, dataset)
    network = session.build(options, dataset.train.images.shape[1:], len(dataset.class_names))
    training = session.begin(options, directory, restored, dataset, network, _job(options), stop)

    # 4. The loop, to the end or until somebody asks to stop.
    session.train(training, network, options, dataset)
    return FINISHED


def _job(options: Options) -> dict[str, Any]:
    size = "x".join(map(str, options.image_size)) if options.image_size else "the data set's own"
    return {"dataset": options.dataset, "model": options.model, "image size": size}


def _is_finished(directory: Directory, restored: Restored, options: Options) -> bool:
    said = progress.read(directory.progress)
    done = bool(said.get("finished")) and said.get("step") == restored.position.step
    return done and restored.position.epoch >= options.epochs and directory.final_model.exists()


def _begin_to_load(options: Options, imported: threading.Event) -> Future[Dataset]:
    from trainer import data

    pool = ThreadPoolExecutor(1, thread_name_prefix="data")
    loading = pool.submit(data.load, options.data, imported)
    pool.shutdown(wait=False)
    return loading


def _prepare_environment(options: Options) -> None:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # Else Keras writes its settings into the home directory, and obeys those that it finds there.
    os.environ.setdefault("KERAS_HOME", str(options.data_dir / ".keras"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _refuse_impossible(options: Options, dataset: Dataset) -> None:
    examples = len(dataset.train.labels)
    if options.batch_size > examples:
        raise Refused(f"a batch of {options.batch_size} is larger than the data: {examples} examples to train on")


def _end(code: int) -> None:
    """Leave at once: taking TensorFlow down in good order takes long, and everything is on disk."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        exit_code = main()
    except SystemExit as asked:
        exit_code = asked.code if isinstance(asked.code, int) else FAILED
    _end(exit_code)
