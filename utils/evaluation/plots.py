"""Pictures of an evaluation: scores, calibration, length, sources. They read well in grey print."""

import os
from collections.abc import Callable
from pathlib import Path

from utils.evaluation.tables import shorten

LIGHT, DARK, ACCENT = "#9ecae1", "#08519c", "#d94801"
MOST_SOURCES = 40


def draw_pictures(results: dict[str, dict], folder: str | Path) -> list[Path]:
    """Draw what there is to draw as PNG files; each file is whole at any moment.

    A picture of an earlier evaluation for which there is nothing to draw now is removed.

    Args:
        results: metrics by group, in this order; of the last one, which stands for all, are
            scores.png, calibration.png and length.png.
        folder: an existing one.

    Returns:
        The files that were written.
    """
    metrics = list(results.values())[-1]
    judged = {name: group for name, group in results.items() if group["accuracy"] is not None}
    parts = {
        "scores.png": (_draw_scores, metrics["histogram"] if metrics["pairs"] else None),
        "calibration.png": (_draw_calibration, metrics["calibration_bins"]),
        "length.png": (_draw_length, metrics["length_gap_bins"]),
        "sources.png": (_draw_sources, judged),
    }
    return save_pictures(parts, folder)


def save_pictures(parts: dict[str, tuple[Callable, object]], folder: str | Path) -> list[Path]:
    """Draw PNG files; each file is whole at any moment, and one without data is removed.

    Args:
        parts: name of the file -> what draws on a Matplotlib figure, and the data that it gets.
        folder: an existing one.

    Returns:
        The files that were written.
    """
    from matplotlib.figure import Figure

    written = []
    for name, (draw, data) in parts.items():
        path = Path(folder) / name
        if not data:
            path.unlink(missing_ok=True)
            continue
        figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        draw(figure, data)
        partial = path.with_name(f"{name}.partial")
        figure.savefig(partial, format="png")
        os.replace(partial, path)
        written.append(path)
    return written


def _draw_scores(figure, histogram: dict) -> None:
    axes = figure.subplots()
    edges = histogram["edges"]
    axes.stairs(histogram["better"], edges, fill=True, color=LIGHT, label="better answers")
    axes.stairs(histogram["better"], edges, color=DARK, linewidth=1)
    axes.stairs(
        histogram["worse"],
        edges,
        color=ACCENT,
        linewidth=2.5,
        linestyle=(0, (3, 1)),
        label="worse answers",
    )
    axes.set(xlabel="score", ylabel="pairs")
    axes.set_ylim(0, 1.05 * max(*histogram["better"], *histogram["worse"]))
    finish_axes(axes, legend=True)


def _draw_calibration(figure, bins: list[dict]) -> None:
    axes, below = two_panels(figure)
    confidence = [one["confidence"] for one in bins]
    axes.plot([0.5, 1], [0.5, 1], color="0.4", linestyle="--", label="calibrated")
    axes.plot(
        confidence, [one["accuracy"] for one in bins], color=DARK, marker="o", label="the model"
    )
    axes.set(ylabel="accuracy (share of pairs)", xlim=(0.49, 1.01), ylim=(-0.03, 1.06))
    finish_axes(axes, legend=True)
    # Bins are 0.05 wide; a mean confidence of 1 belongs to the last one.
    places = [0.525 + 0.05 * min(int((value - 0.5) / 0.05), 9) for value in confidence]
    draw_counts(below, places, [one["pairs"] for one in bins], width=0.045)
    below.set(xlabel="confidence, sigmoid(|margin|)")


def _draw_length(figure, bins: list[dict]) -> None:
    axes, below = two_panels(figure)
    places = range(len(bins))
    axes.axhline(0.5, color="0.4", linestyle="--", label="guessing")
    axes.plot(places, [one["accuracy"] for one in bins], color=DARK, marker="o", label="the model")
    axes.set(ylabel="accuracy (share of pairs)", ylim=(-0.03, 1.06))
    axes.set_xlim(-0.6, len(bins) - 0.4)
    finish_axes(axes, legend=True)
    draw_counts(below, places, [one["pairs"] for one in bins], width=0.9)
    below.set_xticks(places, [_gap_name(one["low"], one["high"]) for one in bins])
    below.set(xlabel="length of the better minus the worse answer (tokens)")


def _gap_name(low: int | None, high: int | None) -> str:
    """Of a bin whose edge nearer to 0 is outside (metrics.Tally.results)."""
    if low is None:
        return f"below\n{high}"
    if high is None:
        return f"above\n{low}"
    if low == high:
        return f"{low}"
    return f"{low + 1}\nto {high}" if low >= 0 else f"{low}\nto {high - 1}"


def two_panels(figure):
    """A panel for a curve and a low one for the counts under it, with one horizontal axis."""
    return figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))


def draw_counts(axes, places, counts: list[int], width: float) -> None:
    """Bars with their numbers of pairs."""
    bars = axes.bar(places, counts, width=width, color=LIGHT, edgecolor=DARK)
    axes.bar_label(bars, [_short(count) for count in counts], padding=2, fontsize=9)
    axes.set(ylabel="pairs", ylim=(0, 1.4 * max(counts)), yticks=())
    finish_axes(axes)


def _short(count: int) -> str:
    """A count in five characters at most: 9,999, 12k, 3.4M."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e3:.0f}k" if count < 999_500 else f"{count / 1e6:.3g}M"


def _draw_sources(figure, results: dict[str, dict]) -> None:
    """Bars from the top down; "all" is hatched."""
    shown = sorted(results, key=lambda name: results[name]["pairs"])[-MOST_SOURCES:]
    names = [name for name in results if name in shown]
    labels = list(shorten(names, 36).values())
    longest = max(map(len, labels))
    figure.set_size_inches(7 + 0.08 * max(0, longest - 36), 1.4 + 0.26 * len(names))
    axes = figure.subplots()
    for place, name in enumerate(names):
        one = results[name]
        whole = len(names) > 1 and name == "all"
        axes.barh(
            place,
            one["accuracy"],
            0.7,
            color="white" if whole else LIGHT,
            edgecolor=DARK,
            hatch="///" if whole else None,
        )
        if one["accuracy_low"] is not None:
            axes.plot(
                [one["accuracy_low"], one["accuracy_high"]],
                [place] * 2,
                color="black",
                marker="|",
                markersize=7,
                linewidth=1.5,
            )
        axes.annotate(
            f"{one['accuracy']:.3f}  ({one['pairs']:,} pairs)",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
        )
    axes.axvline(0.5, color=ACCENT, linestyle="--")
    # Names are data: a dollar sign starts no formula.
    axes.set_yticks(range(len(names)), labels, fontsize=9, parse_math=False)
    left_out = len(results) - len(names)
    axes.set(
        xlim=(0, 1),
        ylim=(len(names) - 0.4, -0.6),
        xlabel="accuracy (share of pairs, with 95 % interval)"
        + (f"; {left_out} smaller sources are left out" if left_out else ""),
    )
    finish_axes(axes)


def finish_axes(axes, legend: bool = False) -> None:
    """A light grid, no frame, and the legend above."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        # Above the axes, where it hides nothing.
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
