"""Line charts and scatter plots as SVG text: for the report, and as files beside model cards. No plotting library.

Colours are CSS variables with fall-backs, so that a report can set them for dark and light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
COLOURS = ("#3366cc", "#d9632b", "#2f9e5f", "#8a4fbf", "#c2405f", "#1f8f9f", "#8c6d31", "#666f7a")
WIDTH, HEIGHT = 420, 232
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 42, 26


@dataclass(frozen=True)
class _Frame:
    """Maps data to picture coordinates."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / ((self.x1 - self.x0) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / ((self.y1 - self.y0) or 1.0) * (HEIGHT - TOP - BOTTOM)


def line_chart(
    title: str, series: Mapping[str, Sequence[Point]], smooth: float = 0.0, marks: Sequence[float] = ()
) -> str:
    """An SVG of one or several lines over steps; points that are not finite are left out.

    With ``smooth`` in (0, 1), an exponential mean (that share of the past is kept) is drawn over the pale raw line.
    Each step in ``marks`` gets a dashed line from bottom to top.
    """
    clean = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    clean = {name: points for name, points in clean.items() if points}
    if not clean:
        return ""
    frame = _frame([p for points in clean.values() for p in points])
    parts = [_axes(frame)]
    for i, points in enumerate(clean.values()):
        colour = COLOURS[i % len(COLOURS)]
        if smooth and len(points) > 3:
            parts.append(_polyline(frame, points, colour, 0.25))
            points = _exponential_mean(points, smooth)
        parts.append(_polyline(frame, points, colour, 1.0))
    parts += [_mark(frame, step) for step in marks if frame.x0 <= step <= frame.x1]
    parts.append(_title_and_legend(title, list(clean)))
    return _svg(parts)


def scatter_chart(title: str, points: Mapping[str, Point], x_label: str, y_label: str, unit_square: bool = True) -> str:
    """Named points; with ``unit_square`` both axes run from 0 to 1 and curves of equal product are drawn."""
    frame = _Frame(0, 1, 0, 1) if unit_square else _frame(list(points.values()))
    parts = [_axes(frame)]
    if unit_square:
        for product in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
            line = [(x, product / x) for x in (product + (1 - product) * k / 40 for k in range(41))]
            parts.append(_polyline(frame, line, "var(--muted, #999)", 0.35))
    for i, (name, (x, y)) in enumerate(points.items()):
        colour = COLOURS[i % len(COLOURS)]
        cx, cy = frame.x(x), frame.y(y)
        side, anchor = (-7, "end") if x > (frame.x0 + frame.x1) * 0.6 else (7, "start")
        dot = f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4.5" fill="{colour}">'
        parts.append(f"{dot}<title>{escape(name)}</title></circle>")
        parts.append(_text(cx + side, cy + 4, name, anchor=anchor, size=10))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - BOTTOM - 5, x_label, anchor="end", size=10))
    parts.append(_text(LEFT + 5, TOP + 10, y_label, size=10))
    parts.append(_text(LEFT, 15, title, size=13, weight=600))
    return _svg(parts)


def _frame(points: Sequence[Point]) -> _Frame:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.1
    return _Frame(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, low - margin, high + margin)


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers inside [low, high]."""
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step) * step
    return [first + i * step for i in range(int((high - first) / step + 1e-9) + 1)]


def _axes(frame: _Frame) -> str:
    lines = []
    for value in _ticks(frame.y0, frame.y1):
        y = frame.y(value)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line, #ddd)"/>')
        lines.append(_text(LEFT - 6, y + 3.5, _number(value), anchor="end", size=10, muted=True))
    for value in _ticks(frame.x0, frame.x1):
        lines.append(_text(frame.x(value), HEIGHT - BOTTOM + 15, _number(value), anchor="middle", size=10, muted=True))
    return "".join(lines)


def _polyline(frame: _Frame, points: Sequence[Point], colour: str, opacity: float) -> str:
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" '
        f'stroke-opacity="{opacity}" stroke-linejoin="round"/>'
    )


def _mark(frame: _Frame, step: float) -> str:
    x = frame.x(step)
    line = f'x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
    return f'<line class="mark" {line} stroke="var(--down, #b3372f)" stroke-dasharray="4 3"/>'


def _exponential_mean(points: Sequence[Point], keep: float) -> list[Point]:
    """Bias-corrected, so that the line starts at the first value."""
    mean, weight, out = 0.0, 0.0, []
    for x, y in points:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        out.append((x, mean / weight))
    return out


def _title_and_legend(title: str, names: Sequence[str]) -> str:
    """The title, and below it a dot and a name per line of the chart, as many as fit; one line needs none."""
    parts = [_text(LEFT, 15, title, size=13, weight=600)]
    x = float(LEFT)
    for i, name in enumerate(names if len(names) > 1 else ()):
        width = 18 + 5.6 * len(name)
        if x + width > WIDTH:
            break
        parts.append(f'<circle cx="{x + 4:.1f}" cy="27.5" r="3.5" fill="{COLOURS[i % len(COLOURS)]}"/>')
        parts.append(_text(x + 11, 31, name, size=10))
        x += width
    return "".join(parts)


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: int = 11, weight: int = 400, muted: bool = False
) -> str:
    fill = "var(--muted, #777)" if muted else "var(--ink, #222)"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{fill}">{escape(text)}</text>'
    )


def _number(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"


def _svg(parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" role="img">{"".join(parts)}</svg>'
    )
