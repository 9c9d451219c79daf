"""Pictures of what trains: lengths, and how often the longer answer is the better one."""

from pathlib import Path

import numpy as np

from utils.data.figures import Figures, Histogram
from utils.evaluation.plots import (
    ACCENT,
    DARK,
    LIGHT,
    draw_counts,
    finish_axes,
    save_pictures,
    two_panels,
)

MOST_BARS = 60


def draw_audit(figures: Figures, max_seq_len: int, folder: str | Path) -> list[Path]:
    """Draw lengths.png and length_gap.png as far as there is something to draw.

    Args:
        figures: of all that trains.
        max_seq_len: tokens that a sequence may have.
        folder: an existing one.

    Returns:
        The files that were written.
    """
    gaps = figures.results()["longer_better"]["gaps"]
    lengths = (figures.lengths, max_seq_len) if figures.lengths["prompt"].counts.any() else None
    return save_pictures(
        {"lengths.png": (_draw_lengths, lengths), "length_gap.png": (_draw_gaps, gaps)}, folder
    )


def _draw_lengths(figure, data: tuple[dict[str, Histogram], int]) -> None:
    lengths, max_seq_len = data
    figure.set_size_inches(7, 7)
    prompts, answers, sequences = figure.subplots(3, 1)
    _draw_histogram(prompts, lengths["prompt"], _edges(lengths["prompt"]))
    _say_beyond(prompts, lengths["prompt"], _edges(lengths["prompt"]))
    prompts.set(xlabel="tokens of a prompt", ylabel="comparisons")
    finish_axes(prompts)

    both = Histogram()
    for name in ("better", "worse"):
        both.merge(lengths[name].counts)
    if both.counts.any():
        edges = _edges(both)
        _draw_histogram(answers, lengths["better"], edges, label="better answers")
        counts = _rebin(lengths["worse"], edges)
        line = {"color": ACCENT, "linewidth": 2.5, "linestyle": (0, (3, 1))}
        answers.stairs(counts, edges, label="worse answers", **line)
        _say_beyond(answers, both, edges)
    answers.set(xlabel="tokens of an answer", ylabel="pairs")
    finish_axes(answers, legend=bool(both.counts.any()))

    edges = _edges(lengths["sequence"], max_seq_len)
    _draw_histogram(sequences, lengths["sequence"], edges)
    _say_beyond(sequences, lengths["sequence"], edges)
    label = f"--max_seq_len {max_seq_len}"
    sequences.axvline(max_seq_len, color="black", linestyle="--", label=label)
    sequences.set(xlabel="tokens of prompt and answer, before any cutting", ylabel="answers")
    finish_axes(sequences, legend=True)
    for axes in (prompts, answers, sequences):
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)


def _draw_histogram(axes, histogram: Histogram, edges: np.ndarray, label: str = "") -> None:
    counts = _rebin(histogram, edges)
    axes.stairs(counts, edges, fill=True, color=LIGHT, label=label)
    axes.stairs(counts, edges, color=DARK, linewidth=1)


def _say_beyond(axes, histogram: Histogram, edges: np.ndarray) -> None:
    if beyond := int(histogram.counts[edges[-1] :].sum()):
        text = f"{beyond:,} beyond, up to {histogram.results()['max']:,}"
        axes.annotate(text, (1, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=9)


def _edges(histogram: Histogram, least: int = 0) -> np.ndarray:
    """Edges of bars of whole width that show 99.5 % of the values, or up to `least`."""
    last = max(histogram.percentile(99.5), round(1.1 * least))
    width = last // MOST_BARS + 1
    return width * np.arange(last // width + 2)


def _rebin(histogram: Histogram, edges: np.ndarray) -> np.ndarray:
    """Counts of the values from each edge up to the next one, without it."""
    counts = histogram.counts[: edges[-1]]
    starts = edges[:-1][edges[:-1] < len(counts)]
    return np.pad(np.add.reduceat(counts, starts), (0, len(edges) - 1 - len(starts)))


def _draw_gaps(figure, gaps: list[dict]) -> None:
    axes, below = two_panels(figure)
    places = range(len(gaps))
    axes.axhline(0.5, color="0.4", linestyle="--", label="length says nothing")
    shares = [gap["share"] for gap in gaps]
    axes.plot(places, shares, color=DARK, marker="o", label="the longer answer is better")
    axes.set(ylabel="share of pairs", ylim=(-0.03, 1.06), xlim=(-0.6, len(gaps) - 0.4))
    finish_axes(axes, legend=True)
    draw_counts(below, places, [gap["pairs"] for gap in gaps], width=0.9)
    below.set_xticks(places, [_gap_name(gap["above"], gap["up_to"]) for gap in gaps])
    below.set(xlabel="how much longer the longer answer is (tokens)")


def _gap_name(above: int, up_to: int | None) -> str:
    return f"above\n{above}" if up_to is None else f"{above + 1}\nto {up_to}"
