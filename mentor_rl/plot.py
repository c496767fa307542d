"""Line charts, scatter plots and heat maps as SVG text, for the report and for model cards. No plotting library.

Colours are CSS variables with fall-backs, so that a report can set them for dark and light.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mentor_rl.plot_labels import Box, Placed, place_labels

Point = tuple[float, float]
COLOURS = ("#3366cc", "#d9632b", "#2f9e5f", "#8a4fbf", "#c2405f", "#1f8f9f", "#8c6d31", "#666f7a")
WIDTH, HEIGHT = 420, 232
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 42, 26
LEGEND_ROW = 14


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
    title: str,
    series: Mapping[str, Sequence[Point]],
    smooth: float = 0.0,
    marks: Sequence[float] = (),
    below: str | None = None,
) -> str:
    """An SVG of one or several lines over steps; points that are not finite are left out.

    A name's colour is that of its place in ``series``, whether it has points or not. With ``smooth`` in (0, 1), an
    exponential mean (that share of the past is kept) is drawn over the pale raw line. Each step in ``marks`` gets a
    dashed line from bottom to top. ``below`` stands in the legend's place.
    """
    clean = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    drawn = {name: (i, points) for i, (name, points) in enumerate(clean.items()) if points}
    if not drawn:
        return ""
    frame = _frame([p for _, points in drawn.values() for p in points])
    parts = [_axes(frame)]
    for i, points in drawn.values():
        if smooth and len(points) > 3:
            parts.append(_polyline(frame, points, i, 0.25))
            points = _exponential_mean(points, smooth)
        parts.append(_polyline(frame, points, i, 1.0))
    parts += [_mark(frame, step) for step in marks if frame.x0 <= step <= frame.x1]
    rows = 1
    if below is not None:
        parts.append(_text(LEFT, 31, below, size=11, muted=True))
    elif len(drawn) > 1:
        legend, rows = _legend({name: i for name, (i, _) in drawn.items()})
        parts.append(legend)
    above = LEGEND_ROW * (rows - 1)
    parts.append(_text(LEFT, 15 - above, title, size=13, weight=600))
    return _svg(parts, title, above=above)


def scatter_chart(
    title: str,
    points: Mapping[str, Point],
    x_label: str,
    y_label: str,
    faint: Mapping[str, Sequence[Point]] | None = None,
) -> str:
    """Named points of two shares, and curves of equal product.

    Names stand beside their points where there is room for all, else numbers do, and the names below the chart. The
    axes run from 0 to 1; with ``faint``, further points of the same names, or where there is no room for numbers
    either, they close in on what is drawn.
    """
    faint = faint or {}
    everything = [*points.values(), *(point for each in faint.values() for point in each)]
    frame = _Frame(0, 1, 0, 1)
    if faint or _placed(frame, points.values(), _numbers(points)).covered > 0.0:
        frame = _close_frame(everything)
    parts = [_axes(frame), *_products(frame)]
    for i, (name, (x, y)) in enumerate(points.items()):
        for pale_x, pale_y in faint.get(name, ()):
            parts.append(f'<circle cx="{frame.x(pale_x):.1f}" cy="{frame.y(pale_y):.1f}" r="2.5" '
                         f'fill="{colour(i)}" fill-opacity="0.45"/>')  # fmt: skip
        dot = f'<circle class="point" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="4.5" fill="{colour(i)}">'
        parts.append(f"{dot}<title>{escape(name)}</title></circle>")
    names, below = _point_names(frame, points)
    parts += names
    parts.append(_text(WIDTH - RIGHT, HEIGHT - BOTTOM - 5, x_label, anchor="end", size=10))
    parts.append(_text(LEFT - 6, TOP - 8, y_label, anchor="end", size=10))
    parts.append(_text(LEFT, 15, title, size=13, weight=600))
    return _svg(parts, title, height=HEIGHT + below)


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    texts: Mapping[tuple[str, str], str],
    coloured: Collection[tuple[str, str]],
) -> str:
    """Cells; those ``coloured`` in the colours of up and down, each as strong as its share of its column's largest."""
    there = {key: value for key, value in values.items() if math.isfinite(value)}
    if not there:
        return ""
    left, top, width, height = 170, 62, 92, 24
    largest = {column: max((abs(v) for (_, c), v in there.items() if c == column), default=0.0) for column in columns}
    parts = [_text(0, 15, title, size=13, weight=600)]
    for j, column in enumerate(columns):
        parts.append(_text(left + (j + 0.5) * width, top - 8, _cut(column, 17), anchor="middle", size=10, muted=True))
    for i, row in enumerate(rows):
        middle = top + (i + 0.5) * height
        parts.append(_text(left - 8, middle + 3.5, _cut(row, 26), anchor="end", size=10))
        for j, column in enumerate(columns):
            value = there.get((row, column))
            if value is None:
                continue
            share = abs(value) / largest[column] if largest[column] and (row, column) in coloured else 0.0
            tone = "var(--up, #1a7f46)" if value > 0 else "var(--down, #b3372f)"
            place = f'x="{left + j * width + 1}" y="{top + i * height + 1}" width="{width - 2}" height="{height - 2}"'
            told = f"<title>{escape(f'{row}, {column}')}</title>"
            parts.append(f'<rect {place} rx="3" fill="{tone}" fill-opacity="{0.55 * share:.2f}">{told}</rect>')
            parts.append(_text(left + (j + 0.5) * width, middle + 3.5, texts[row, column], anchor="middle", size=10))
    return _svg(parts, title, left + len(columns) * width, top + len(rows) * height + 8, scale=1.25)


def colour(place: int) -> str:
    """Of the line, point or run at this place of a list."""
    return COLOURS[place % len(COLOURS)]


def dot(place: int) -> str:
    """A small sign in a legend outside a chart; dashed, as its line is, from the ninth on."""
    dash = ' stroke-dasharray="3 3"' if place >= len(COLOURS) else ""
    line = f'<line x1="0" x2="16" y1="5" y2="5" stroke="{colour(place)}" stroke-width="3"{dash}/>'
    return f'<svg width="16" height="10" aria-hidden="true">{line}</svg>'


def _close_frame(points: Sequence[Point]) -> _Frame:
    """Around shares, with room for the names of points at the edges."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    wide, high = max(max(xs) - min(xs), 0.02), max(max(ys) - min(ys), 0.02)
    return _Frame(
        max(0.0, min(xs) - 0.18 * wide), min(1.0, max(xs) + 0.18 * wide),
        max(0.0, min(ys) - 0.12 * high), min(1.0, max(ys) + 0.12 * high),
    )  # fmt: skip


def _products(frame: _Frame) -> list[str]:
    """Curves of equal product that cross the frame, about eight, each with its number where it leaves."""
    low, high = frame.x0 * frame.y0, frame.x1 * frame.y1
    parts = []
    for product in _ticks(low, high, 8):
        first, last = max(frame.x0, product / frame.y1), min(frame.x1, product / max(frame.y0, 1e-9))
        if product <= 0 or first >= last:
            continue
        line = [(x, product / x) for x in (first + (last - first) * k / 40 for k in range(41))]
        parts.append(_polyline(frame, line, None, 0.35))
        x, y = line[0]
        parts.append(
            _text(
                frame.x(x) + 2, frame.y(y) - 2 if x > frame.x0 else frame.y(y) + 9, _number(product), size=7, muted=True
            )
        )
    return parts


def _point_names(frame: _Frame, points: Mapping[str, Point]) -> tuple[list[str], float]:
    """The texts of a scatter plot's points, and the height that they take below it."""
    beside = _placed(frame, points.values(), list(points))
    if beside.covered == 0.0:
        return [_text(x, y, name, size=9) for name, (x, y) in zip(points, beside.places, strict=True)], 0.0
    numbers = _numbers(points)
    places = _placed(frame, points.values(), numbers).places
    parts = [_text(x, y, number, size=9, weight=600) for number, (x, y) in zip(numbers, places, strict=True)]
    rows = math.ceil(len(points) / 2)
    for i, name in enumerate(points):
        x, y = 10 + (WIDTH - 10) / 2 * (i // rows), HEIGHT + 12 + 13 * (i % rows)
        parts.append(f'<circle cx="{x}" cy="{y - 3}" r="3.5" fill="{colour(i)}"/>')
        parts.append(_text(x + 8, y, f"{i + 1}  {_cut(name, 36)}", size=9))
    return parts, 8.0 + 13 * rows


def _placed(frame: _Frame, points: Iterable[Point], texts: Sequence[str]) -> Placed:
    room = Box(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    return place_labels([(frame.x(x), frame.y(y)) for x, y in points], texts, 9, room)


def _numbers(points: Mapping[str, Point]) -> list[str]:
    return [str(i + 1) for i in range(len(points))]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


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


def _polyline(frame: _Frame, points: Sequence[Point], place: int | None, opacity: float) -> str:
    """A line in the colour of its place, dashed from the ninth on; None: a helping line."""
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 3"' if place is not None and place >= len(COLOURS) else ""
    stroke = "var(--muted, #999)" if place is None else colour(place)
    return (
        f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{1.0 if place is None else 1.8}" '
        f'stroke-opacity="{opacity}" stroke-linejoin="round"{dash}/>'
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


def _legend(places: Mapping[str, int]) -> tuple[str, int]:
    """A dot and a name per line of the chart, and the number of rows: the last one ends where a single one would."""
    rows: list[list[tuple[float, str, int]]] = [[]]
    x = float(LEFT)
    for name, place in places.items():
        width = 18 + 5.6 * len(name)
        if rows[-1] and x + width > WIDTH:
            rows.append([])
            x = float(LEFT)
        rows[-1].append((x, name, place))
        x += width
    parts = []
    for row, names in enumerate(reversed(rows)):
        y = 31 - LEGEND_ROW * row
        for x, name, place in names:
            parts.append(f'<circle cx="{x + 4:.1f}" cy="{y - 3.5}" r="3.5" fill="{colour(place)}"/>')
            parts.append(_text(x + 11, y, name, size=10))
    return "".join(parts), len(rows)


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


def _svg(
    parts: Sequence[str],
    title: str,
    width: float = WIDTH,
    height: float = HEIGHT,
    scale: float | None = None,
    above: float = 0.0,
) -> str:
    """With ``scale`` of a fixed size, else as wide as there is room; ``above`` more of it than y = 0."""
    size = "" if scale is None else f'width="{width * scale:g}" height="{height * scale:g}" '
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {0 - above:g} {width:g} {height + above:g}" {size}'
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
