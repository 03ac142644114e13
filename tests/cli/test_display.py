"""What a guest writes cannot steer the user's terminal; steps show themselves as the place allows."""

import io
import re
import sys
import textwrap
import time

from hypothesis import given
from hypothesis import strategies as st

from cloudtrain.display import Cleaner, LogLines, Plain, clean, duration

from .conftest import REPOSITORY
from .test_face import terminal_output

SCRIPT = """
import sys, threading
sys.path.insert(0, {repository!r})
from cloudtrain.display import open_display

display = open_display(quiet={quiet}, verbose={verbose})
display.note("a note \\x1b[31mred")

def work(title):
    with display.step(title, usually="about 10 s") as step:
        step.update("half \\x1b]0;done\\x07way")

threads = [threading.Thread(target=work, args=(f"step {{n}}",)) for n in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
try:
    with display.step("the one that fails"):
        raise ValueError
except ValueError:
    pass
with display.out_of_the_way():
    print("result", flush=True)
display.close()
"""


def said(*, quiet: bool = False, verbose: bool = False, **environment: str) -> str:
    """What a terminal gets of the script's display."""
    script = textwrap.dedent(SCRIPT).format(repository=str(REPOSITORY), quiet=quiet, verbose=verbose)
    given = {"PATH": "/usr/bin:/bin", "TERM": "xterm", "LANG": "C.UTF-8", **environment}
    return terminal_output([sys.executable, "-c", script], given, "/").decode()


def test_on_a_terminal_each_step_leaves_one_line_and_the_cursor_comes_back() -> None:
    text = said()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0
    for number in range(8):
        assert len(re.findall(rf"✓(?:\x1b\[[0-9;]*m)* step {number}", text)) == 1
    assert "✗" in text and "failed after" in text
    assert "\x1b]0;" not in text and "\x1b[31mred" not in text


def test_no_color_leaves_out_the_colours() -> None:
    colours = r"\x1b\[[0-9;]*m"
    assert re.search(colours, said())
    assert not [code for code in re.findall(colours, said(NO_COLOR="1")) if re.search(r"3[0-7]", code)]


def test_a_dumb_terminal_gets_plain_lines() -> None:
    lines = said(TERM="dumb").splitlines()
    assert lines[0] == "a note red"
    assert sorted(line.partition(":")[0] for line in lines[1:9]) == [f"step {n}" for n in range(8)]
    assert all(re.fullmatch(r"step \d: done in [\d.]+ s", line) for line in lines[1:9])
    assert re.fullmatch(r"the one that fails: failed after [\d.]+ s", lines[9])
    assert lines[10:] == ["result"]


def test_verbose_tells_what_is_awaited() -> None:
    assert said(verbose=True).count(": half way (") == 8


def test_without_a_terminal_a_long_silent_step_says_that_it_goes_on() -> None:
    stream = io.StringIO()
    display = Plain(stream, verbose=False, silent_seconds=0.05)
    with display.step("deleting", usually="a few minutes on Azure"):
        deadline = time.monotonic() + 20
        while stream.getvalue().count("\n") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    display.close()
    *first, last = stream.getvalue().splitlines()
    told = r"deleting \([\d.]+ s so far, usually a few minutes on Azure\)"
    assert all(re.fullmatch(told, line) for line in first) and last.startswith("deleting: done in")


def test_quiet_shows_only_results() -> None:
    assert said(quiet=True).splitlines() == ["result"]


NASTY = [
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
    "\x1bP$q\x1b\\",
    "\x9b31m",
    "\x1b(B",
    "\x1bc",
    "\x07",
    "\x08",
    "\x00",
    "\x7f",
    "\u202e",
]


def test_nothing_that_steers_a_terminal_gets_through() -> None:
    for nasty in NASTY:
        assert clean(f"be{nasty}fore\tand\nafter") in ("before\tand\nafter", "belinkfore\tand\nafter"), repr(nasty)
    assert clean("10%\r20%\r\ndone") == "10%\n20%\ndone"


pieces = st.one_of(st.sampled_from(NASTY), st.text("ab[];mä\u2028\n\r\t\x1b\\\x07\x9b", max_size=5))


@given(st.lists(pieces, max_size=12))
def test_text_in_chunks_is_cleaned_as_the_whole_is(chunks: list[str]) -> None:
    cleaner = Cleaner()
    text = "".join(cleaner.feed(chunk) for chunk in chunks) + cleaner.end()
    assert text == clean("".join(chunks))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def test_an_endless_sequence_does_not_hold_the_log_back() -> None:
    cleaner = Cleaner()
    shown = "".join(cleaner.feed("\x1b]0;" + "x" * 100 + "\n") for _ in range(100))
    assert len(shown) > 5000


@given(st.lists(st.text("ab\n\r\x1b", max_size=6), max_size=10))
def test_a_program_gets_every_line_exactly(chunks: list[str]) -> None:
    lines: list[str] = []
    stream = LogLines(lines.append)
    for chunk in chunks:
        stream(chunk)
    stream.end()
    text = "".join(chunks)
    assert "\n".join(lines) == text.removesuffix("\n")


def test_durations_read_as_people_say_them() -> None:
    assert [duration(s) for s in (0.04, 9.94, 59.4, 60, 3599, 7500)] == [
        "0.0 s",
        "9.9 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "2 h 05 min",
    ]
