"""The pictures of an evaluation."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from utils.output.pictures import (
    CURVE_ABOVE_COUNTS,
    DARK,
    DASHED,
    FONT,
    LIGHT,
    REFERENCE,
    SMALL_FONT,
    draw_bins,
    draw_counts,
    draw_histogram,
    gap_name,
    legend_above,
    save_pictures,
)
from utils.output.tables import TOTAL, shorten_names

if TYPE_CHECKING:  # loading Matplotlib takes long
    from matplotlib.figure import Figure

MOST_SOURCES = 40
FEWEST_PAIRS = 10  # the accuracy of fewer is mostly chance


def draw_pictures(results: dict[str, dict], folder: str | Path) -> list[Path]:
    """Draw what there is to draw (`save_pictures`).

    Args:
        results: metrics by group, in this order; of the last one, which stands for all, are
            scores.png, calibration.png and length.png.
        folder: an existing one.
    """
    metrics = list(results.values())[-1]
    judged = any(group["accuracy"] is not None for group in results.values())
    return save_pictures(
        {
            "scores.png": (_draw_scores, metrics["histogram"] if metrics["pairs"] else None),
            "calibration.png": (_draw_calibration, metrics["calibration_bins"]),
            "length.png": (_draw_length, metrics["length_gap_bins"]),
            "sources.png": (_draw_sources, results if judged else None),
        },
        folder,
    )


def _draw_scores(figure: "Figure", histogram: dict) -> None:
    axes = figure.subplots()
    draw_histogram(axes, histogram["better"], histogram["edges"], "better answers")
    axes.stairs(histogram["worse"], histogram["edges"], label="worse answers", **DASHED)
    axes.set(xlabel="score", ylabel="pairs")
    axes.set_ylim(0, 1.05 * max(*histogram["better"], *histogram["worse"]))
    legend_above(axes)


def _draw_calibration(figure: "Figure", bins: list[dict]) -> None:
    axes, below = figure.subplots(2, 1, **CURVE_ABOVE_COUNTS)
    axes.plot([0.5, 1], [0.5, 1], label="calibrated", **REFERENCE)
    judged = [one for one in bins if one["pairs"] >= FEWEST_PAIRS]
    points = [one["confidence"] for one in judged], [one["accuracy"] for one in judged]
    axes.plot(
        *points, color=DARK, marker="o", label=f"the model, bins of {FEWEST_PAIRS} pairs or more"
    )
    axes.set(ylabel="accuracy\n(share of pairs)", xlim=(0.49, 1.01), ylim=(-0.03, 1.06))
    legend_above(axes)
    # Bins are 0.05 wide; a mean confidence of 1 belongs to the last one.
    places = [0.525 + 0.05 * min(int((one["confidence"] - 0.5) / 0.05), 9) for one in bins]
    draw_counts(below, places, [one["pairs"] for one in bins], width=0.045)
    below.set(xlabel="confidence, sigmoid(|margin|)")


def _draw_length(figure: "Figure", bins: list[dict]) -> None:
    names = [gap_name(one["low"], one["high"]) for one in bins]
    axes, below = draw_bins(figure, bins, "accuracy", names, curve="the model", half="guessing")
    axes.set_ylabel("accuracy\n(share of pairs)")
    below.set_xlabel("length of the better minus the worse answer (tokens)")


def _draw_sources(figure: "Figure", results: dict[str, dict]) -> None:
    """Bars from the top down; "all" is hatched."""
    judged = [name for name, one in results.items() if one["accuracy"] is not None]
    shown = set(sorted(judged, key=lambda name: results[name]["pairs"])[-MOST_SOURCES:])
    labels = [label for name, label in _source_labels(results).items() if name in shown]
    bars = [(name, one) for name, one in results.items() if name in shown]

    figure.set_figheight(1.6 + 0.34 * len(bars))
    axes = figure.subplots()
    for place, (name, one) in enumerate(bars):
        (bar,) = axes.barh(place, one["accuracy"], 0.7, color=LIGHT, edgecolor=DARK)
        if len(bars) > 1 and name == TOTAL:
            bar.set(facecolor="white", hatch="///")
        if one["accuracy_low"] is not None:
            ends = [one["accuracy_low"], one["accuracy_high"]]
            axes.plot(ends, [place] * 2, color="black", marker="|", linewidth=2)
        text, end = f"{one['accuracy']:.3f}  ({one['pairs']:,} pairs)", ("axes fraction", "data")
        axes.annotate(text, (1.02, place), xycoords=end, va="center", fontsize=SMALL_FONT)

    axes.axvline(0.5, label="guessing", **REFERENCE)
    axes.set_yticks(range(len(bars)), labels, fontsize=SMALL_FONT)
    axes.grid(visible=False, axis="y")
    left_out = len(judged) - len(bars)
    axes.set(
        xlim=(0, 1),
        ylim=(len(bars) - 0.4, -0.6),
        xlabel="accuracy (share of pairs, with 95 % interval)"
        + (f"; {left_out} smaller sources are left out" if left_out else ""),
    )
    legend_above(axes)


def _source_labels(names: Iterable[str]) -> dict[str, str]:
    """Names as the font can write them: others would be empty boxes, so they are numbered."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(FONT))
    labels = {
        name: name
        if all(font.get_char_index(ord(letter)) for letter in name)
        else f"row {number} of report.md's tables"
        for number, name in enumerate(names, start=1)
    }
    short = shorten_names(list(labels.values()), 30)
    return {name: short[label] for name, label in labels.items()}
