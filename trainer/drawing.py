"""Silhouettes of horses and humans, drawn procedurally: pure numpy, the same bytes on every machine.

A picture is a function of (seed, split, index, size) alone. Only additions, multiplications, divisions and
square roots touch pixels, which IEEE 754 rounds the same everywhere; angles are rounded before use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Point = tuple[float, float]

NAMES = ("horses", "humans")
SPLITS = ("train", "test")
MOST_TURNED = 0.2  # radians
GRAIN = 13


@dataclass(frozen=True)
class Stroke:
    """A line from a to b, as thick as 2 * radius, with round ends. In units of the figure's height."""

    a: Point
    b: Point
    radius: float


def draw(seed: int, split: str, index: int, size: int) -> tuple[Picture, str]:
    """Picture number `index` of a split, `size` x `size` x 3, and its label. Even numbers are horses."""
    label = NAMES[index % 2]
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    paint = _background(rng, size)
    figure = _horse(rng) if label == "horses" else _human(rng)
    _fill(paint, _cover(_placed(rng, figure), size), _ink(rng, paint))
    paint += rng.integers(-GRAIN, GRAIN + 1, (size, size, 3), dtype=np.int8)
    return np.clip(paint, 0, 255).astype(np.uint8), label


def _background(rng: np.random.Generator, size: int) -> Plane:
    """A slanting gradient between two colours, with soft blobs and a few twigs that mean nothing."""
    first, second = rng.integers(40, 216, (2, 3)).astype(np.float32)
    turn = _turn(rng.uniform(0, 2 * math.pi))
    axis = _axis(size)
    along = (turn[0] * (axis[None, :] - 0.5) + turn[1] * (axis[:, None] - 0.5)) / np.float32(1.5) + 0.5
    paint: Plane = first + (second - first) * along[:, :, None]
    for _ in range(int(rng.integers(3, 7))):
        _blob(rng, paint, size)
    for _ in range(int(rng.integers(0, 4))):
        x, y, dx, dy = rng.uniform(0, 1, 4)
        twig = Stroke((x, y), (x + (dx - 0.5) * 0.3, y + (dy - 0.5) * 0.3), float(rng.uniform(0.006, 0.014)))
        _fill(paint, _cover([twig], size), rng.integers(20, 236, 3).astype(np.float32))
    return paint


def _blob(rng: np.random.Generator, paint: Plane, size: int) -> None:
    x, y, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.08, 0.3)
    colour = rng.integers(20, 236, 3).astype(np.float32)
    rows, columns = _window(y - radius, y + radius, size), _window(x - radius, x + radius, size)
    axis = _axis(size)
    squared = (axis[columns][None, :] - np.float32(x)) ** 2 + (axis[rows][:, None] - np.float32(y)) ** 2
    cover = np.maximum(0, 1 - squared / np.float32(radius * radius)) * np.float32(rng.uniform(0.3, 0.8))
    part = paint[rows, columns]
    part += (colour - part) * cover[:, :, None]


def _ink(rng: np.random.Generator, paint: Plane) -> npt.NDArray[np.float32]:
    """One colour, clearly darker or brighter than the picture on the whole."""
    mean = float(paint[::8, ::8].mean())
    away = float(rng.uniform(70, 110)) * (-1 if mean > 128 else 1)
    tint = rng.integers(-18, 19, 3).astype(np.float32)
    colour: npt.NDArray[np.float32] = np.clip(np.float32(round(mean + away)) + tint, 0, 255)
    return colour


def _fill(paint: Plane, cover: Plane, colour: npt.NDArray[np.float32]) -> None:
    paint += (colour - paint) * cover[:, :, None]


def _cover(strokes: list[Stroke], size: int) -> Plane:
    """How much of each pixel the strokes cover, 0 to 1, softened over one pixel at the edge."""
    cover = np.zeros((size, size), np.float32)
    axis = _axis(size)
    for stroke in strokes:
        (ax, ay), (bx, by), reach = stroke.a, stroke.b, stroke.radius + 1 / size
        rows = _window(min(ay, by) - reach, max(ay, by) + reach, size)
        columns = _window(min(ax, bx) - reach, max(ax, bx) + reach, size)
        inside = _distance(axis[columns][None, :], axis[rows][:, None], stroke)
        soft = np.clip((np.float32(stroke.radius) - inside) * size + np.float32(0.5), 0, 1)
        np.maximum(cover[rows, columns], soft, out=cover[rows, columns])
    return cover


def _distance(x: Plane, y: Plane, stroke: Stroke) -> Plane:
    """Of each pixel to the line from a to b."""
    ax, ay = np.float32(stroke.a[0]), np.float32(stroke.a[1])
    dx, dy = np.float32(stroke.b[0]) - ax, np.float32(stroke.b[1]) - ay
    length = max(dx * dx + dy * dy, np.float32(1e-12))
    along = np.clip(((x - ax) * dx + (y - ay) * dy) / length, 0, 1)
    distance: Plane = np.sqrt((x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2)
    return distance


def _axis(size: int) -> npt.NDArray[np.float32]:
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)


def _window(low: float, high: float, size: int) -> slice:
    return slice(max(0, math.floor(low * size)), max(0, min(size, math.ceil(high * size) + 1)))


def _turn(angle: float) -> Point:
    # Rounded, because the last bit of sin and cos differs between C libraries.
    return round(math.cos(angle), 5), round(math.sin(angle), 5)


def _placed(rng: np.random.Generator, figure: list[Stroke]) -> list[Stroke]:
    """Somewhere in the picture, facing either way, a little turned; the figure's middle is its origin."""
    scale = float(rng.uniform(0.5, 0.85))
    middle = rng.uniform(0.42, 0.58, 2)
    facing = 1 if rng.integers(2) else -1
    cosine, sine = _turn(rng.uniform(-MOST_TURNED, MOST_TURNED))

    def place(point: Point) -> Point:
        x, y = facing * point[0] * scale, point[1] * scale
        return float(middle[0] + x * cosine - y * sine), float(middle[1] + x * sine + y * cosine)

    return [Stroke(place(s.a), place(s.b), s.radius * scale) for s in figure]


def _limb(rng: np.random.Generator, start: Point, lengths: Point, angle: float, radius: float) -> list[Stroke]:
    """Two strokes with a joint. Angle 0 points down; positive is forwards."""
    strokes = []
    for length, thinner in zip(lengths, (1.0, 0.75), strict=True):
        across, down = reversed(_turn(angle))
        end = (start[0] + length * across, start[1] + length * down)
        strokes.append(Stroke(start, end, radius * thinner))
        start, angle = end, angle + float(rng.uniform(-0.35, 0.1))
    return strokes


def _horse(rng: np.random.Generator) -> list[Stroke]:
    """Facing right: a long body, a raised neck, four legs, a tail."""
    body = float(rng.uniform(0.1, 0.13))
    shoulder, rump = (0.2, -0.02), (-0.22, -0.02)
    poll = (float(rng.uniform(0.32, 0.42)), float(rng.uniform(-0.36, -0.22)))
    nose = (poll[0] + float(rng.uniform(0.1, 0.15)), poll[1] + float(rng.uniform(0.06, 0.16)))
    ear = (poll[0] - 0.01, poll[1] - 0.08)
    tail = (rump[0] - float(rng.uniform(0.12, 0.22)), rump[1] + float(rng.uniform(0.05, 0.25)))
    strokes = [
        Stroke(shoulder, rump, body),
        Stroke(shoulder, poll, 0.062),
        Stroke(poll, nose, 0.042),
        Stroke(poll, ear, 0.016),
        Stroke((rump[0] - 0.06, rump[1]), tail, 0.022),
    ]
    for x in (0.24, 0.15, -0.18, -0.27):
        strokes += _limb(rng, (x, 0.05), (0.2, 0.2), float(rng.uniform(-0.4, 0.45)), 0.036)
    return strokes


def _human(rng: np.random.Generator) -> list[Stroke]:
    """Upright: a round head, a torso, two arms, two legs."""
    lean = float(rng.uniform(-0.05, 0.05))
    neck, hips = (lean, -0.3), (0.0, 0.05)
    wide = float(rng.uniform(0.065, 0.095))
    strokes = [
        Stroke((lean, -0.41), (lean, -0.4), float(rng.uniform(0.065, 0.08))),
        Stroke((neck[0], neck[1] + 0.04), hips, wide),
        Stroke((neck[0] - 0.08, neck[1] + 0.03), (neck[0] + 0.08, neck[1] + 0.03), 0.04),
    ]
    for side in (-1, 1):
        swing = side * float(rng.uniform(0.1, 1.3))
        strokes += _limb(rng, (neck[0] + side * 0.1, neck[1] + 0.03), (0.18, 0.17), swing, 0.034)
        stride = side * float(rng.uniform(0.02, 0.45))
        strokes += _limb(rng, (hips[0] + side * 0.045, hips[1] + 0.03), (0.22, 0.22), stride, 0.046)
    return strokes


def montage(seed: int, count: int, size: int) -> npt.NDArray[Any]:
    """The first `count` pictures beside each other, to look at."""
    return np.concatenate([draw(seed, "train", index, size)[0] for index in range(count)], axis=1)
