import numpy as np

from utils.data.keys import mix


def test_mix_is_splitmix64():
    """The first outputs of Java's SplittableRandom(1234567), as published with other ports."""
    state = np.uint64(1234567) + np.uint64(0x9E3779B97F4A7C15) * np.arange(3, dtype=np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mix(state).tolist() == expected
