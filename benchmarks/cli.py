"""How long `cloudtrain --version` and `--help` take beside a bare Typer program: one command, only typer imported.

python benchmarks/cli.py [--pairs 21] [--json]

Each pair runs both programs right after each other, in turns, so that both meet the same machine; the figure is the
median of the pairs' ratios. Two bare programs: typer as it comes (help drawn with rich), and with
`rich_markup_mode=None` (plain help, as ours). Ours has to stay within 1.5 of the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
BARE = '''
import typer

app = typer.Typer({settings})


def print_version(wanted: bool) -> None:
    if wanted:
        print("bare 1.0")
        raise typer.Exit


@app.callback()
def root(version: bool = typer.Option(False, "--version", callback=print_version, is_eager=True)) -> None:
    """A program."""


@app.command()
def hello(name: str) -> None:
    """Greet."""
    print(name)


app()
'''


@dataclass(frozen=True)
class Comparison:
    """Median seconds of both, and the median of the pairs' ratios."""

    ours: float
    bare: float
    ratio: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measured = measure(Path(directory), arguments.pairs)
    if arguments.json:
        print(json.dumps(figures(measured, arguments.pairs)))
    else:
        print(table(measured))


def measure(directory: Path, pairs: int) -> dict[str, Comparison]:
    (directory / "bare_rich.py").write_text(BARE.replace("{settings}", ""))
    (directory / "bare_plain.py").write_text(BARE.replace("{settings}", "rich_markup_mode=None"))
    return {
        "version_over_bare_typer": compare(directory, "bare_rich", "--version", pairs),
        "help_over_bare_typer": compare(directory, "bare_rich", "--help", pairs),
        "version_over_plain_typer": compare(directory, "bare_plain", "--version", pairs),
        "help_over_plain_typer": compare(directory, "bare_plain", "--help", pairs),
    }


def compare(directory: Path, bare: str, flag: str, pairs: int) -> Comparison:
    # The first runs compile; they do not count.
    seconds(directory, bare, flag)
    seconds(directory, "cloudtrain", flag)
    ours: list[float] = []
    theirs: list[float] = []
    for pair in range(pairs):
        # Whoever runs second finds warm caches: they take turns.
        for module in ("cloudtrain", bare) if pair % 2 else (bare, "cloudtrain"):
            (ours if module == "cloudtrain" else theirs).append(seconds(directory, module, flag))
    ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    return Comparison(statistics.median(ours), statistics.median(theirs), ratio)


def seconds(directory: Path, module: str, flag: str) -> float:
    path = os.pathsep.join([str(REPOSITORY), str(directory)])
    command = [sys.executable, "-m", module, flag]
    began = time.perf_counter()
    subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def figures(measured: dict[str, Comparison], pairs: int) -> dict[str, float]:
    ratios = {name: round(one.ratio, 3) for name, one in measured.items()}
    times = {
        "version_ms": round(measured["version_over_bare_typer"].ours * 1000, 1),
        "help_ms": round(measured["help_over_bare_typer"].ours * 1000, 1),
        "bare_version_ms": round(measured["version_over_bare_typer"].bare * 1000, 1),
        "bare_help_ms": round(measured["help_over_bare_typer"].bare * 1000, 1),
    }
    return {**ratios, **times, "pairs": pairs}


def table(measured: dict[str, Comparison]) -> str:
    head = f"{'figure':26}{'cloudtrain':>12}{'bare':>12}{'ratio':>8}"
    rows = [
        f"{name:26}{one.ours * 1000:9.0f} ms{one.bare * 1000:9.0f} ms{one.ratio:8.2f}" for name, one in measured.items()
    ]
    return "\n".join([head, *rows])


if __name__ == "__main__":
    main()
