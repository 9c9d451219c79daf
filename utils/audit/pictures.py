"""Pictures of what trains: lengths, and how often the longer answer is the better one."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.data.figures import Figures, Histogram
from utils.output.pictures import (
    DASHED,
    REFERENCE,
    SMALL_FONT,
    draw_bins,
    draw_histogram,
    gap_name,
    legend_above,
    save_pictures,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 60


def draw_audit(figures: Figures, max_seq_len: int, folder: str | Path) -> list[Path]:
    """Draw lengths.png and length_gap.png of all that trains (output.pictures.save_pictures).

    Args:
        figures: of all that trains.
        max_seq_len: tokens that a sequence may have.
        folder: an existing one.
    """
    gaps = figures.results()["longer_better"]["gaps"]
    lengths = (figures.lengths, max_seq_len) if figures.trained else None
    return save_pictures(
        {"lengths.png": (_draw_lengths, lengths), "length_gap.png": (_draw_gaps, gaps)}, folder
    )


def _draw_lengths(figure: "Figure", data: tuple[dict[str, Histogram], int]) -> None:
    lengths, max_seq_len = data
    figure.set_figheight(10)
    prompts, answers, sequences = figure.subplots(3, 1)
    _draw_lengths_of(prompts, lengths["prompt"], _edges(lengths["prompt"]))
    prompts.set(xlabel="length of a prompt (tokens)", ylabel="comparisons")

    both = Histogram()
    for name in ("better", "worse"):
        both.merge(lengths[name].counts)
    if both.counts.any():
        edges = _edges(both)
        draw_histogram(answers, _rebin(lengths["better"], edges), edges, "better answers")
        answers.stairs(_rebin(lengths["worse"], edges), edges, label="worse answers", **DASHED)
        _say_beyond(answers, both, edges)
        legend_above(answers)
    answers.set(xlabel="length of an answer (tokens)", ylabel="pairs")

    _draw_lengths_of(sequences, lengths["sequence"], _edges(lengths["sequence"], max_seq_len))
    sequences.axvline(max_seq_len, label=f"--max_seq_len {max_seq_len}", **REFERENCE)
    xlabel = "length of prompt and answer, before any cutting (tokens)"
    sequences.set(xlabel=xlabel, ylabel="answers")
    legend_above(sequences)
    for axes in (prompts, answers, sequences):
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)


def _draw_lengths_of(axes: "Axes", histogram: Histogram, edges: np.ndarray) -> None:
    draw_histogram(axes, _rebin(histogram, edges), edges)
    _say_beyond(axes, histogram, edges)


def _say_beyond(axes: "Axes", histogram: Histogram, edges: np.ndarray) -> None:
    if beyond := int(histogram.counts[edges[-1] :].sum()):
        text = f"{beyond:,} beyond, up to {len(histogram.counts) - 1:,}"
        axes.text(
            1, 0.95, text, fontsize=SMALL_FONT, ha="right", va="top", transform=axes.transAxes
        )


def _edges(histogram: Histogram, least: int = 0) -> np.ndarray:
    """Edges of bars of whole width that show 99.5 % of the values, or up to `least`."""
    last = max(histogram.percentile(99.5), round(1.1 * least))
    width = last // MOST_BARS + 1
    return width * np.arange(last // width + 2)


def _rebin(histogram: Histogram, edges: np.ndarray) -> np.ndarray:
    """Counts of the values from each edge up to the next one, without it."""
    counts = histogram.counts[: edges[-1]]
    return np.pad(counts, (0, edges[-1] - len(counts))).reshape(len(edges) - 1, -1).sum(axis=1)


def _draw_gaps(figure: "Figure", gaps: list[dict]) -> None:
    names = [gap_name(gap["above"], gap["up_to"]) for gap in gaps]
    curve, half = "the longer answer is better", "length says nothing"
    axes, below = draw_bins(figure, gaps, "share", names, curve, half)
    axes.set_ylabel("share of pairs")
    below.set_xlabel("how much longer the longer answer is (tokens)")
