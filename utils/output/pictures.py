"""Pictures: the style that all of them have, and the marks that several share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.output.files import whole_file

if TYPE_CHECKING:  # loading Matplotlib takes long
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

# Of Okabe and Ito's colours, which the colour-blind tell apart (jfly.uni-koeln.de/color): sky blue,
# in a lighter tint, blue and vermilion. Dashes, markers and hatches tell the same without colour.
LIGHT, DARK, ACCENT = "#9AD2F2", "#0072B2", "#D55E00"
DASHED: dict[str, Any] = {"color": ACCENT, "linewidth": 3, "linestyle": (0, (3, 1))}
REFERENCE: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.5}
SMALL_FONT = 12.5  # points of numbers beside marks
FONT = "DejaVu Sans"  # comes with Matplotlib
WIDTH = 9.0  # inches
# Still read at half the size.
STYLE: dict[str, Any] = {
    "figure.dpi": 120,
    "savefig.dpi": "figure",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "font.family": FONT,
    "font.size": 14,
    "xtick.labelsize": 13,
    "ytick.labelsize": 13,
    "legend.frameon": False,
    "legend.handlelength": 2.7,
    "lines.linewidth": 2.5,
    "lines.markersize": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "text.parse_math": False,  # names are data: a dollar sign starts no formula
}
CURVE_ABOVE_COUNTS: dict[str, Any] = {"sharex": True, "height_ratios": (3, 1)}


@contextmanager
def picture(path: Path, height: float = 5.5) -> Iterator["Figure"]:
    """A figure to draw on, WIDTH wide, in the style of all pictures; then it is saved.

    Args:
        path: of a PNG file, which is whole at any moment.
        height: in inches.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        yield figure
        with whole_file(path) as partial:
            figure.savefig(partial, format="png")


def save_pictures(
    parts: dict[str, tuple[Callable[["Figure", Any], None], Any]], folder: str | Path
) -> list[Path]:
    """Draw PNG files; each is whole at any moment, and an old one without data now is removed.

    Args:
        parts: name of the file -> what draws on a figure, and the data that it gets.
        folder: an existing one.

    Returns:
        The files that were written.
    """
    written = []
    for name, (draw, data) in parts.items():
        path = Path(folder) / name
        if not data:
            path.unlink(missing_ok=True)
            continue
        with picture(path) as figure:
            draw(figure, data)
        written.append(path)
    return written


def legend_above(axes: "Axes") -> None:
    """A legend above the axes, where it hides nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)


def draw_histogram(axes: "Axes", counts: "ArrayLike", edges: "ArrayLike", label: str = "") -> None:
    """Filled bars with an outline: counts [n] between edges [n + 1]."""
    axes.stairs(counts, edges, fill=True, color=LIGHT, label=label)
    axes.stairs(counts, edges, color=DARK, linewidth=1.5)


def gap_name(low: int | None, high: int | None) -> str:
    """The tokens that a bin of differences holds; of its two edges the one nearer to 0 is outside.

    None: the bin has no edge there.
    """
    if low is None:
        return f"below\n{high}"
    if high is None:
        return f"above\n{low}"
    if low == high:
        return f"{low}"
    return f"{low + 1}\nto {high}" if low >= 0 else f"{low}\nto {high - 1}"


def draw_bins(
    figure: "Figure", bins: list[dict], key: str, names: list[str], *, curve: str, half: str
) -> "tuple[Axes, Axes]":
    """Two panels: the share of each bin that stands under `key`, and its pairs.

    The legend calls the shares `curve`, and a share of 0.5 `half`.
    """
    axes, below = figure.subplots(2, 1, **CURVE_ABOVE_COUNTS)
    places = range(len(bins))
    axes.axhline(0.5, label=half, **REFERENCE)
    axes.plot(places, [one[key] for one in bins], color=DARK, marker="o", label=curve)
    axes.set(ylim=(-0.03, 1.06), xlim=(-0.6, len(bins) - 0.4))
    legend_above(axes)
    draw_counts(below, places, [one["pairs"] for one in bins], width=0.9)
    below.set_xticks(places, names)
    return axes, below


def draw_counts(axes: "Axes", places: Sequence[float], counts: list[int], width: float) -> None:
    """Bars with their numbers of pairs."""
    bars = axes.bar(places, counts, width=width, color=LIGHT, edgecolor=DARK)
    axes.bar_label(bars, [_short_count(count) for count in counts], padding=2, fontsize=SMALL_FONT)
    axes.set(ylabel="pairs", ylim=(0, 1.5 * max(counts)), yticks=())
    axes.grid(visible=False)


def _short_count(count: int) -> str:
    """A count in five characters at most: 9,999, 12k, 3.4M."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e3:.0f}k" if count < 999_500 else f"{count / 1e6:.3g}M"
