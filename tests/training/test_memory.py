import pytest

from utils.estimates import estimate_needs


def needs(devices, nodes=1):
    return {(n.stage, n.offload): n for n in estimate_needs(1000, 100, devices, nodes)}


def test_every_stage_stands_with_and_without_offload():
    assert needs(2).keys() == {(0, False)} | {(s, o) for s in (1, 2, 3) for o in (False, True)}


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (2, 1), (4, 2)])
def test_states_are_divided_as_the_zero_paper_says(devices, nodes):
    """Bytes a parameter: 2 weights, 2 gradients and 16 fp32 weights, gradients and moments."""
    ranks = devices * nodes
    device = {
        stage: need.device
        for (stage, offload), need in needs(devices, nodes).items()
        if not offload
    }
    assert device[0] == 20 * 1000
    assert device[1] == pytest.approx(4 * 1000 + 16 * 1000 / ranks, abs=2)
    assert device[2] == pytest.approx(2 * 1000 + 18 * 1000 / ranks, abs=2)
    assert device[3] == pytest.approx(18 * 1000 / ranks + 4 * 100, abs=2)  # and a gathered layer


def test_offload_moves_states_to_the_host():
    for stage in (1, 2, 3):
        plain, offloaded = needs(2)[stage, False], needs(2)[stage, True]
        assert offloaded.device < plain.device
        assert offloaded.host > plain.host
