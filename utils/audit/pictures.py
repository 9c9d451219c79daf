"""Pictures of what trains: lengths, and how often the longer answer is the better one."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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


def draw_audit(
    lengths: dict[str, np.ndarray], gaps: list[dict], max_seq_len: int, folder: str | Path
) -> list[Path]:
    """Draw lengths.png and length_gap.png of all that trains (output.pictures.save_pictures).

    Args:
        lengths: of `lengths_of` all that trains.
        gaps: of audit_results, under `longer_better`.
        max_seq_len: tokens that a sequence may have.
        folder: an existing one.
    """
    shown = (lengths, max_seq_len) if len(lengths["prompt"]) else None
    return save_pictures(
        {"lengths.png": (_draw_lengths, shown), "length_gap.png": (_draw_gaps, gaps)}, folder
    )


def _draw_lengths(figure: "Figure", data: tuple[dict[str, np.ndarray], int]) -> None:
    lengths, max_seq_len = data
    figure.set_figheight(10)
    prompts, answers, sequences = figure.subplots(3, 1)
    _draw_lengths_of(prompts, lengths["prompt"])
    prompts.set(xlabel="length of a prompt (tokens)", ylabel="comparisons")

    both = np.concatenate([lengths["better"], lengths["worse"]])
    if len(both):
        edges = _edges(both)
        better, worse = (_count_between(lengths[name], edges) for name in ("better", "worse"))
        draw_histogram(answers, better, edges, "better answers")
        answers.stairs(worse, edges, label="worse answers", **DASHED)
        _say_beyond(answers, both, edges)
        legend_above(answers)
    answers.set(xlabel="length of an answer (tokens)", ylabel="pairs")

    _draw_lengths_of(sequences, lengths["sequence"], max_seq_len)
    sequences.axvline(max_seq_len, label=f"--max_seq_len {max_seq_len}", **REFERENCE)
    xlabel = "length of prompt and answer, before any cutting (tokens)"
    sequences.set(xlabel=xlabel, ylabel="answers")
    legend_above(sequences)

    for axes in (prompts, answers, sequences):
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)


def _draw_lengths_of(axes: "Axes", values: np.ndarray, least: int = 0) -> None:
    edges = _edges(values, least)
    draw_histogram(axes, _count_between(values, edges), edges)
    _say_beyond(axes, values, edges)


def _count_between(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Values from each edge up to the next one, without it: int64 [edges - 1]."""
    return np.histogram(values, [*edges, np.inf])[0][:-1]


def _say_beyond(axes: "Axes", values: np.ndarray, edges: np.ndarray) -> None:
    if beyond := np.count_nonzero(values >= edges[-1]):
        text = f"{beyond:,} beyond, up to {values.max():,}"
        axes.text(
            1, 0.95, text, fontsize=SMALL_FONT, ha="right", va="top", transform=axes.transAxes
        )


def _edges(values: np.ndarray, least: int = 0) -> np.ndarray:
    """Edges of bars of whole width that show 99.5 % of the values, or up to `least`."""
    shown = int(np.percentile(values, 99.5, method="inverted_cdf"))
    last = max(shown, round(1.1 * least))
    width = last // MOST_BARS + 1
    return width * np.arange(last // width + 2)


def _draw_gaps(figure: "Figure", gaps: list[dict]) -> None:
    names = [gap_name(gap["above"], gap["up_to"]) for gap in gaps]
    curve, half = "the longer answer is better", "length says nothing"
    axes, below = draw_bins(figure, gaps, "share", names, curve=curve, half=half)
    axes.set_ylabel("share of pairs")
    below.set_xlabel("how much longer the longer answer is (tokens)")
