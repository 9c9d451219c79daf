"""Hashes of 64 bits by which prompts, answers and comparisons are told apart.

Among five million comparisons, two different ones look alike with a probability below one in a
million.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc


def mix(keys: np.ndarray) -> np.ndarray:
    """Spread keys evenly over 64 bits: the output function of SplitMix64 (Steele et al. 2014,
    doi 10.1145/2660193.2660195).

    Args:
        keys: uint64 [N].
    """
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys ^= keys >> np.uint64(30)
    keys *= np.uint64(0xBF58476D1CE4E5B9)
    keys ^= keys >> np.uint64(27)
    keys *= np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)
    return keys


def comparison_keys(table: pa.Table) -> np.ndarray:
    """Hashes that are equal where prompt, answers and their ranking are; the order is free.

    Malformed rows have keys, too: leave them out before looking for the first of each.

    Args:
        table: tokenised rows.

    Returns:
        uint64 [n].
    """
    counts = pc.list_value_length(table["answer_keys"]).to_numpy()
    answers, ranks = (pc.list_flatten(table[name]) for name in ("answer_keys", "ranks"))

    # Rankings that order the answers alike are equal, whatever their numbers are.
    comparison = np.arange(len(counts)).repeat(counts)
    place = ranks.to_pandas().groupby(comparison).rank("min").to_numpy().astype(np.uint64)
    answers = mix(mix(answers.to_numpy().view(np.uint64)) + place)

    # A sum does not depend on the order of the answers; it wraps around at 64 bits.
    sums, ends = np.append(np.uint64(0), np.cumsum(answers, dtype=np.uint64)), np.cumsum(counts)
    prompts = mix(table["prompt_key"].to_numpy().view(np.uint64))
    return mix(prompts + sums[ends] - sums[ends - counts])


def is_first(keys: np.ndarray) -> np.ndarray:
    """Which keys, int64 or uint64 [n], are the first of those equal to them: bool [n]."""
    return ~pd.Series(keys).duplicated().to_numpy()
