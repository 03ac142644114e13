"""crontab(5), as Debian's and Ubuntu's cron reads it: parsing, checking, and what is due."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

SPOOL = "var/spool/cron/crontabs"

_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day-of-month", 1, 31),
    ("month", 1, 12),
    ("day-of-week", 0, 7),
)
_MONTHS = {
    name: n
    for n, name in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)
}
_DAYS = {name: n for n, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
_VARIABLE = re.compile(r"\s*(\"[^\"]*\"|'[^']*'|[A-Za-z_]\w*)\s*=\s*(.*)$")


class BadCrontab(Exception):
    """line: counted from 0, as crontab(1) counts in its message. what: 'bad minute' and the like."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"{line}: {what}")
        self.line = line
        self.what = what


@dataclass(frozen=True)
class Line:
    """One job. times is None for @reboot; otherwise the allowed values of the five fields."""

    command: str
    times: tuple[frozenset[int], ...] | None
    environment: dict[str, str] = field(default_factory=dict)
    any_day_of_month: bool = True
    any_day_of_week: bool = True

    def is_due(self, now: datetime) -> bool:
        if self.times is None:
            return False
        minute, hour, day, month, weekday = self.times
        if now.minute not in minute or now.hour not in hour or now.month not in month:
            return False
        matches = now.day in day, now.isoweekday() % 7 in weekday
        # crontab(5): when both day fields are restricted, either one is enough
        return all(matches) if self.any_day_of_month or self.any_day_of_week else any(matches)

    def shell_and_input(self) -> tuple[str, str]:
        """An unescaped % ends the command; what follows is its standard input, with % for newline."""
        parts = re.split(r"(?<!\\)%", self.command)
        command, *rest = (part.replace("\\%", "%") for part in parts)
        return command, "\n".join(rest) + "\n" if rest else ""


def parse(text: str) -> list[Line]:
    """Raises BadCrontab."""
    lines: list[Line] = []
    environment: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines()):
        stripped = raw.strip()
        if not stripped or stripped.startswith("#"):
            continue
        variable = _VARIABLE.match(raw)
        if variable:
            environment = {**environment, _unquoted(variable[1]): _unquoted(variable[2].strip())}
        else:
            lines.append(_job(number, stripped, environment))
    return lines


def readable_lines(path: Path) -> list[Line]:
    """What cron makes of a crontab that was not installed by crontab(1): nothing when it is wrong."""
    try:
        return parse(path.read_text(errors="replace"))
    except (OSError, BadCrontab):
        return []


def crontabs(spool: Path) -> Iterator[tuple[str, Path]]:
    """(user, crontab) of every user who has one."""
    if spool.is_dir():
        for path in sorted(spool.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                yield path.name, path


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _job(number: int, line: str, environment: dict[str, str]) -> Line:
    if line.startswith("@"):
        nickname, _, command = line.partition(" ") if " " in line else line.partition("\t")
        if not command.strip():
            raise BadCrontab(number, "bad command")
        if nickname == "@reboot":
            return Line(command.strip(), None, environment)
        if nickname not in _NICKNAMES:
            raise BadCrontab(number, "bad time specifier")
        line = f"{_NICKNAMES[nickname]} {command}"
    parts = line.split(None, 5)
    times = tuple(_values(number, text, *rule) for text, rule in zip(parts, _FIELDS, strict=False))
    if len(times) < 5:
        raise BadCrontab(number, f"bad {_FIELDS[len(times)][0]}")
    if len(parts) < 6:
        raise BadCrontab(number, "bad command")
    weekdays = frozenset(day % 7 for day in times[4])
    return Line(parts[5], (*times[:4], weekdays), environment, parts[2].startswith("*"), parts[4].startswith("*"))


def _values(number: int, text: str, name: str, low: int, high: int) -> frozenset[int]:
    names = _MONTHS if name == "month" else _DAYS if name == "day-of-week" else {}
    values: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, dash, last = span.partition("-")
        try:
            begin = low if span == "*" else _number(first, names)
            end = high if span == "*" or (step and not dash) else _number(last, names) if dash else begin
            found = range(begin, end + 1, int(step) if step else 1)
        except ValueError:
            raise BadCrontab(number, f"bad {name}") from None
        if not found or begin < low or end > high:
            raise BadCrontab(number, f"bad {name}")
        values.update(found)
    return frozenset(values)


def _number(text: str, names: dict[str, int]) -> int:
    return names[text.lower()] if text.lower() in names else int(text)
