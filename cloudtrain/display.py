"""What moves on a terminal: the steps of a workflow while they run (a `Progress`), and log text as it comes."""

import os
import re
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from cloudtrain.progress import Progress, Step

if TYPE_CHECKING:
    from rich.text import Text

# ECMA-48: CSI (ESC [ parameters, final byte), strings (OSC, DCS, ... up to BEL or ESC \), other two- and
# three-byte sequences; the C1 forms of CSI and strings too.
_CSI, _STRING = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*", r"(?:\x1b[PX^_\]]|[\x90\x98\x9d\x9e\x9f])"
_WHOLE = rf"{_CSI}[@-~]|{_STRING}.*?(?:\x07|\x1b\\|\x9c)|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
_ESCAPES = re.compile(_WHOLE, re.DOTALL)
# The same, and what may become one (or a line end) with the next chunk.
_ESCAPES_SO_FAR = re.compile(rf"{_WHOLE}|(?P<open>{_CSI}\Z|{_STRING}.*\Z|\x1b[ -/]*\Z|\r\Z)", re.DOTALL)
# Overrides of the writing direction make a terminal show another text than the one that is there.
_DIRECTION = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# A sequence that is still open at the end of a chunk waits for the next one, up to this length.
_LONGEST_OPEN = 4096
_BAR = 24


def clean(text: str) -> str:
    """`text` without what steers a terminal: escape sequences, control characters but newline and tab."""
    # Line ends first: an escape sequence between \r and \n keeps them two.
    text = _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "".join(char for char in text if char in "\n\t" or not _steers(char))


def _steers(char: str) -> bool:
    return unicodedata.category(char) == "Cc" or char in _DIRECTION


class Cleaner:
    """`clean` for text that comes in chunks, which may cut an escape sequence or a line end in two."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, chunk: str) -> str:
        text = self._held + chunk
        cut = _open_from(text)
        self._held = text[cut:]
        return clean(text[:cut])

    def end(self) -> str:
        held, self._held = self._held, ""
        return clean(held)


def _open_from(text: str) -> int:
    """Where a sequence begins that `text` does not end; its length where there is none."""
    for match in _ESCAPES_SO_FAR.finditer(text):
        if match["open"] is not None and len(text) - match.start() <= _LONGEST_OPEN:
            return match.start()
    return len(text)


class Display(Progress, Protocol):
    """A `Progress` that can be got out of the way of other output, and ended."""

    def out_of_the_way(self) -> Any:
        """A context manager: inside, nothing of the display is on the screen."""
        ...

    def close(self) -> None:
        """Ends the display; steps that still run in threads stay silent."""
        ...


def open_display(*, quiet: bool, verbose: bool) -> Display:
    """The display that fits standard error: live on a terminal, a line a step elsewhere, none when quiet."""
    if quiet:
        return Silent()
    if is_terminal(sys.stderr) and not verbose:
        return Live()
    return Plain(sys.stderr, verbose=verbose)


def is_terminal(stream: TextIO) -> bool:
    """Whether escape codes may go there."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


class Timed:
    """One step: measures itself, and reports to its display. Times are those of whoever watches, so no `Clock`."""

    def __init__(self, display: "Silent | Plain | Live", title: str, usually: str) -> None:
        self.title = title
        self.usually = usually
        self.awaited = ""
        self.share: float | None = None  # of what is to be done, where that can be counted
        self.began = 0.0
        self._display = display

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def update(self, text: str) -> None:
        self.awaited = " ".join(clean(text).split())
        self._display.on_update(self)

    def amount(self, done: int, total: int) -> None:
        self.share = min(1.0, done / total) if total else 1.0
        self.update(f"{size(done)} of {size(total)}")

    def __enter__(self) -> Step:
        self.began = time.monotonic()
        self._display.on_begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.on_end(self, kind)


def outcome(kind: type[BaseException] | None) -> str:
    """How a step ended, in a word."""
    if kind is None:
        return "done in"
    return "interrupted after" if issubclass(kind, KeyboardInterrupt) else "failed after"


def duration(seconds: float) -> str:
    """1.2 s, 45 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def size(count: float) -> str:
    """12 bytes, 1.2 kB, 345 MB: powers of ten."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5 or unit == "GB":
            break
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"


class Silent:
    """No display at all."""

    def step(self, title: str, usually: str = "") -> Step:
        return Timed(self, title, usually)

    def note(self, text: str) -> None:
        pass

    def on_begin(self, step: Timed) -> None:
        pass

    def on_update(self, step: Timed) -> None:
        pass

    def on_end(self, step: Timed, kind: type[BaseException] | None) -> None:
        pass

    @contextmanager
    def out_of_the_way(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        pass


class Plain(Silent):
    """A line for each step when it ends; in long waits one every ten seconds in which something is told, else one every
    thirty. No escape codes."""

    def __init__(self, stream: TextIO, *, verbose: bool, silent_seconds: float = 30.0) -> None:
        self._stream = stream
        self._verbose = verbose
        self._silent_seconds = silent_seconds
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._last: dict[Timed, tuple[float, str]] = {}
        self._watch: threading.Thread | None = None

    def note(self, text: str) -> None:
        self._line(text)

    def on_begin(self, step: Timed) -> None:
        with self._lock:
            self._last[step] = (0.0, "")
            if self._watch is None:
                self._watch = threading.Thread(target=self._tell_silent_ones, daemon=True)
                self._watch.start()

    def on_update(self, step: Timed) -> None:
        with self._lock:
            if step not in self._last:
                return
            seconds, text = self._last[step]
            if (self._verbose and step.awaited != text) or step.seconds - seconds >= 10:
                self._tell(step)

    def on_end(self, step: Timed, kind: type[BaseException] | None) -> None:
        with self._lock:
            self._last.pop(step, None)
            self._line(f"{step.title}: {outcome(kind)} {duration(step.seconds)}")

    def _tell_silent_ones(self) -> None:
        while not self._closed.wait(self._silent_seconds / 30):
            with self._lock:
                for step, (seconds, _) in list(self._last.items()):
                    if step.seconds - seconds >= self._silent_seconds:
                        self._tell(step)

    def _tell(self, step: Timed) -> None:
        self._last[step] = (step.seconds, step.awaited)
        awaited = f": {step.awaited}" if step.awaited else ""
        usually = f", usually {step.usually}" if step.usually else ""
        self._line(f"{step.title}{awaited} ({duration(step.seconds)} so far{usually})")

    def _line(self, text: str) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            try:
                self._stream.write(clean(text).rstrip() + "\n")
                self._stream.flush()
            except OSError:
                # Nobody reads any more; that must not end the work half-way.
                self._closed.set()

    def close(self) -> None:
        with self._lock:
            self._closed.set()


class Live(Silent):
    """Every running step with a spinner and its time; a line that stays for each one that ended."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bars
        from rich.progress import ProgressColumn, SpinnerColumn
        from rich.text import Text

        class Words(ProgressColumn):
            # Steps move by the clock: never served from the cache.
            max_refresh = None

            def render(self, task: Any) -> Text:
                return _words(task.fields["step"])

        self._console = Console(stderr=True, highlight=False)
        plain_ascii = self._console.options.ascii_only
        self._marks = ("+", "x") if plain_ascii else ("✓", "✗")
        self._bars = Bars(
            SpinnerColumn("line" if plain_ascii else "dots"),
            Words(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._tasks: dict[Timed, Any] = {}
        self._lock = threading.RLock()
        self._closed = False

    def note(self, text: str) -> None:
        with self._lock:
            if not self._closed:
                self._print(clean(text).rstrip())

    def on_begin(self, step: Timed) -> None:
        with self._lock:
            if self._closed:
                return
            self._tasks[step] = self._bars.add_task("", total=None, step=step)
            self._bars.start()

    def on_end(self, step: Timed, kind: type[BaseException] | None) -> None:
        with self._lock:
            task = self._tasks.pop(step, None)
            if task is None:
                return
            self._bars.remove_task(task)
            if not self._tasks:
                self._bars.stop()
            self._print_end(step, kind)

    def _print_end(self, step: Timed, kind: type[BaseException] | None) -> None:
        from rich.text import Text

        mark = (self._marks[0], "green") if kind is None else (self._marks[1], "red")
        how = "" if kind is None else outcome(kind) + " "
        self._print(Text.assemble(mark, f" {step.title}", (f"  {how}{duration(step.seconds)}", "dim")))

    def _print(self, text: Any) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def out_of_the_way(self) -> Iterator[None]:
        with self._lock:
            shown = bool(self._tasks)
            if shown:
                self._bars.stop()
            try:
                yield
            finally:
                if shown and not self._closed:
                    self._bars.start()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._tasks.clear()
            self._bars.stop()


def _words(step: Timed) -> "Text":
    from rich.text import Text

    text = Text(f"{step.title}  {duration(step.seconds)}", no_wrap=True, overflow="ellipsis")
    if step.share is not None:
        done = round(_BAR * step.share)
        text.append("  ").append("#" * done, style="cyan").append("." * (_BAR - done), style="dim")
    if step.awaited:
        text.append(f"  {step.awaited}", style="dim")
    # Only a wait that may seem long needs its usual length.
    if step.usually and step.seconds > 5:
        text.append(f"  (usually {step.usually})", style="dim")
    return text


class LogText:
    """Log text for a person: cleaned, written to standard output as it comes."""

    def __init__(self, display: Display, write: Callable[[str], None]) -> None:
        self._display = display
        self._write = write
        self._cleaner = Cleaner()
        self._line_open = False

    def __call__(self, chunk: str) -> None:
        self._put(self._cleaner.feed(chunk))

    def _put(self, text: str) -> None:
        if text:
            with self._display.out_of_the_way():
                self._write(text)
            self._line_open = not text.endswith("\n")

    def end(self) -> None:
        self._put(self._cleaner.end())
        if self._line_open:
            self._put("\n")


class LogLines:
    """Log text for a program: whole lines, exactly as they are; `put` gets one at a time, without its end."""

    def __init__(self, put: Callable[[str], None]) -> None:
        self._put = put
        self._open = ""

    def __call__(self, chunk: str) -> None:
        *whole, self._open = (self._open + chunk).split("\n")
        for line in whole:
            self._put(line)

    def end(self) -> None:
        if self._open:
            self._put(self._open)
            self._open = ""
