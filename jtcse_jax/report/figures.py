"""The pictures of a report: vector graphics with colours that the page's style sheet defines.

matplotlib draws with a few fixed colours, which are then replaced by the page's colour variables,
so one picture works in light mode, dark mode and print. Titles and legends are text of the page.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

INK = "#0a0b0c"  # stands for the page's text colour
# Okabe and Ito's colours for the colour-blind; the page lightens or darkens them.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("none", "6 2.5", "2 2", "7 2 2 2")  # for lines that share a colour or a subject
POINTS = 300  # most points of a line; more are averaged in groups
WIDE = 5  # least ratio of the largest to the smallest number for a logarithmic axis
BINS = 40
LEVELS = 5  # levels of gold scores
STYLE = {
    "svg.fonttype": "none",  # text stays text: it has the page's font and can be searched
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.5,
}


class Line(NamedTuple):
    """Numbers y [n] over x [n], with a band from `low` to `high` if these are given."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0  #: index into `SERIES`; after the last colour it starts again with another dash
    dash: int = 0  #: index into `DASHES`
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    mark: float | None = None  #: the x of a point to mark


class Key(NamedTuple):
    """An entry of a legend."""

    label: str
    color: int  #: index into `SERIES`
    dash: str  #: one of `DASHES`


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    title: str
    svg: str  #: an <svg> element, its text escaped
    data: str  #: the drawn numbers as CSV, with a header
    legend: tuple[Key, ...] = ()

    @property
    def link(self) -> str:
        """The drawn numbers as an address that needs no other file."""
        return f"data:text/csv;charset=utf-8,{quote(self.data, safe=',')}"

    @property
    def file(self) -> str:
        """A name for a file of the numbers."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-") + ".csv"


def curves(
    title: str,
    lines: Sequence[Line],
    *,
    x: str = "step",
    y: str = "",
    log: bool = False,
    values: str = ".3g",
) -> Picture:
    """Lines in one frame; the text alternative has the first and last value of each line.

    `log` draws a logarithmic axis if the numbers are above 0 and span a wide range. `values` is the
    format of the numbers in the text alternative.
    """
    description = "; ".join(
        f"{line.label and line.label + ': '}{line.y[0]:{values}} at {x} {line.x[0]:g}, "
        f"{line.y[-1]:{values}} at {x} {line.x[-1]:g}"
        for line in lines
    )
    with _figure(4.6, 2.7, title + description) as figure:
        axes = figure.add_subplot()
        for line in lines:
            _draw(axes, line)
        lowest, highest = (end([end(line.y) for line in lines]) for end in (min, max))
        if log and lowest > 0 and highest > WIDE * lowest:
            axes.set_yscale("log")
        axes.locator_params("x", integer=True)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.margins(x=0.02)
        svg = _svg(figure, f"{title}. {description}.")
        return Picture(title, svg, _csv(_points(lines, x, y or title)), _legend(lines))


def histograms(title: str, cosines: np.ndarray, gold: np.ndarray) -> Picture:
    """The distribution of the cosines [n] of pairs, a row for each fifth of the range of gold [n].

    Each row shows shares of its own pairs, and all rows have one scale; a line marks the mean.
    """
    edges = np.linspace(gold.min(), gold.max(), LEVELS + 1)
    level = np.clip(np.searchsorted(edges, gold, side="right") - 1, 0, LEVELS - 1)
    parts = [cosines[level == number] for number in range(LEVELS)]
    names = [f"{low:.3g} to {high:.3g}" for low, high in zip(edges, edges[1:], strict=False)]
    description = "; ".join(
        f"gold {name}: {len(part)} pairs"
        + (f", mean cosine {part.mean():.2f}" if len(part) else "")
        for name, part in zip(names, parts, strict=True)
    )
    span = np.linspace(min(cosines.min(), 0), max(cosines.max(), 1), BINS + 1)
    shares = [np.histogram(part, span)[0] / max(len(part), 1) for part in parts]
    with _figure(4.6, 3.2, title + description) as figure:
        rows = figure.subplots(LEVELS, sharex=True, sharey=True)
        for axes, share, part, name in zip(
            rows, shares[::-1], parts[::-1], names[::-1], strict=True
        ):
            axes.stairs(share, span, fill=True, color=SERIES[0], alpha=0.55)
            axes.stairs(share, span, color=SERIES[0], linewidth=1)
            if len(part):
                axes.axvline(part.mean(), color=SERIES[1], linewidth=1.5)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.set_ylabel(f"{name}\nn = {len(part)}", rotation=0, ha="right", va="center")
        rows[-1].set_xlabel("cosine")
        table: list[tuple[Any, ...]] = [("gold", "pairs", "cosine from", "cosine to", "share")]
        for name, part, share in zip(names, parts, shares, strict=True):
            bins = zip(span, span[1:], share, strict=False)
            table += [(name, len(part), *one) for one in bins]
        return Picture(title, _svg(figure, f"{title}. {description}."), _csv(table))


def heat_map(title: str, values: np.typing.ArrayLike, *, largest: float) -> Picture:
    """Numbers [L, H] from 0 to `largest`: layers from top to bottom, heads from left to right."""
    array = np.asarray(values, np.float64)
    layers, heads = array.shape
    layer, head = np.unravel_index(array.argmax(), array.shape)
    by_layer = ", ".join(f"{value:.2f}" for value in array.mean(axis=1))
    description = (
        f"mean over heads, by layer: {by_layer}; largest {array.max():.2f} in layer {layer + 1}, "
        f"head {head + 1}"
    )
    with _figure(3.3, min(3.0, 0.9 + 0.19 * layers), title + description) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(
            array,
            vmin=0,
            vmax=largest,
            cmap="cividis",
            aspect="auto",
            interpolation="none",
            extent=(0.5, heads + 0.5, layers + 0.5, 0.5),
        )
        axes.grid(False)
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        axes.set_xticks(_counted(heads))
        axes.set_yticks(_counted(layers))
        bar = figure.colorbar(image, ax=axes, pad=0.03)
        bar.outline.set_visible(False)
        cells = [
            (row + 1, column + 1, array[row, column]) for row, column in np.ndindex(*array.shape)
        ]
        table = [("layer", "head", "value"), *cells]
        return Picture(title, _svg(figure, f"{title}. {description}."), _csv(table))


def thinned(numbers: Sequence[float], most: int = POINTS) -> np.ndarray:
    """[m] float64, m <= `most`: the means of about equally large groups of neighbours in [n]."""
    array = np.asarray(numbers, np.float64)
    return np.array([part.mean() for part in np.array_split(array, min(most, len(array)))])


def _points(lines: Sequence[Line], x: str, y: str) -> Iterator[tuple[Any, ...]]:
    """The names of the columns, then the drawn points of each line."""
    banded = any(line.low is not None for line in lines)
    yield ("line", x, y, *(("low", "high") if banded else ()))
    for line in lines:
        columns = [line.x, line.y]
        if line.low is not None and line.high is not None:
            columns += [line.low, line.high]
        for numbers in zip(*map(thinned, columns), strict=True):
            yield line.label, *numbers


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV, numbers with up to seven digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow(cell if isinstance(cell, str) else f"{cell:.7g}" for cell in row)
    return file.getvalue()


def _draw(axes: Any, line: Line) -> None:
    x, y = thinned(line.x), thinned(line.y)
    color = SERIES[line.color % len(SERIES)]
    dashes = DASHES[_dash(line)]
    style = "-" if dashes == "none" else (0, tuple(map(float, dashes.split())))
    if line.low is not None and line.high is not None:
        low, high = thinned(line.low), thinned(line.high)
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    few = len(x) <= 15
    axes.plot(x, y, color=color, linestyle=style, marker="o" if few else None, markersize=3)
    if line.mark is not None:
        height = np.interp(line.mark, line.x, line.y)
        axes.plot([line.mark], [height], color=color, marker="D", markersize=6, linestyle="none")


def _dash(line: Line) -> int:
    return (line.dash + line.color // len(SERIES)) % len(DASHES)


def _legend(lines: Sequence[Line]) -> tuple[Key, ...]:
    if len(lines) == 1:
        return ()
    return tuple(Key(line.label, line.color % len(SERIES), DASHES[_dash(line)]) for line in lines)


def _counted(count: int) -> list[int]:
    """At most twelve ticks, the first at 1."""
    return list(range(1, count + 1, -(-count // 12)))


@contextmanager
def _figure(width: float, height: float, salt: str) -> Iterator[Any]:
    """A figure, size in inches, with our style over matplotlib's defaults, not the user's style.

    The ids in the drawing depend on `salt`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        style: Any = STYLE | {"svg.hashsalt": salt}  # matplotlib's type lists all names
        matplotlib.rcParams.update(style)
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any, description: str) -> str:
    """The drawing as an HTML element, without anything that changes from day to day."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Its style sheet would apply to the whole page, which already has these two rules.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    used = set(re.findall(r'#([\w.-]+)["\)]', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = text.replace(INK, "currentColor")
    for number, color in enumerate(SERIES):
        text = text.replace(color, f"var(--series-{number})")
    width = figure.get_figwidth()
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        lambda found: (
            f'<svg role="img" aria-label="{_escaped(description)}" viewBox="{found[1]}" '
            f'style="max-width: {width:g}in" xmlns:xlink="http://www.w3.org/1999/xlink">'
        ),
        text,
        count=1,
    )


def _escaped(text: str) -> str:
    for char, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(char, name)
    return text
