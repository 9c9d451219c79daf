import warnings
from itertools import combinations

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks.accuracy_over_time import draw as draw_accuracy_over_time
from utils.audit.pictures import draw_audit
from utils.evaluation.metrics import Tallies
from utils.evaluation.pictures import LIGHT, draw_pictures
from utils.training.log import draw_curves

PICTURES = ["scores.png", "calibration.png", "length.png", "sources.png"]


def make_results(sources, rows=40, spread=1.0, lengths=400):
    """Metrics of random pairs, so many of each source."""
    generator = np.random.default_rng(0)
    tallies = Tallies()
    for number, source in enumerate(sources):
        scores = spread * (generator.normal(size=(rows, 2)) + [0.5, 0]) - 3
        tallies.add(
            [
                {
                    "index": number * rows + row,
                    "source": source,
                    "prompt": int(generator.integers(2**60)),
                    "ranks": [0, 1],
                    "scores": scores[row].tolist(),
                    "lengths": generator.integers(1, lengths, 2).tolist(),
                }
                for row in range(rows)
            ]
        )
    return tallies.results()


LONG = [f"organisation/data-set-{i}/a-part-with-a-rather-long-name" for i in range(30)]
CASES = {
    "one source": make_results(["hh"], rows=500),
    "30 long names": make_results(LONG),
    "one pair": make_results(["hh"], rows=1),
    "three pairs": make_results(["hh"], rows=3),
    "equal scores": make_results(["hh", "$x_1$ 100 %"], spread=0.0),
    "names that the font lacks": make_results(["中文" * 20, "a\nb", "🙂", "plain"]),
    "huge scores": make_results(["hh"], spread=1e30),
    "equal lengths": make_results(["hh"], lengths=2),
}


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    return collect(monkeypatch)


def collect(monkeypatch):
    saved = []
    save = Figure.savefig

    def savefig(figure, *args, **kwargs):
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_whole_and_legible(tmp_path, figures, case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a layout that does not fit, of missing letters
        written = draw_pictures(CASES[case], tmp_path)
    assert [path.name for path in written] == PICTURES
    assert sorted(tmp_path.iterdir()) == sorted(written)
    for path in written:
        picture = matplotlib.image.imread(path)
        assert min(picture.shape[:2]) > 150
        assert picture[..., :3].min() < 0.2 < 0.95 < picture[..., :3].max()
    for figure in figures:
        for axes in figure.axes:
            assert axes.get_ylabel() or axes.get_xlabel()
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                boxes = [text.get_window_extent() for text in labels if text.get_text()]
                assert not any(a.overlaps(b) for a, b in combinations(boxes, 2)), case
        inside = figure.get_tightbbox()
        assert inside.x0 >= 0 and inside.y0 >= 0, case
        assert inside.x1 <= figure.get_figwidth() and inside.y1 <= figure.get_figheight(), case


def test_what_is_drawn_is_what_was_measured(tmp_path, figures):
    results = make_results(["a", "b"], rows=60)
    draw_pictures(results, tmp_path)
    metrics = results["all"]
    scores, calibration, length, sources = figures
    filled, outline, worse = scores.axes[0].patches
    assert filled.get_data().values.tolist() == metrics["histogram"]["better"]
    assert worse.get_data().values.tolist() == metrics["histogram"]["worse"]
    assert worse.get_data().edges.tolist() == metrics["histogram"]["edges"]
    for figure, name, fewest in (
        (calibration, "calibration_bins", 10),
        (length, "length_gap_bins", 1),
    ):
        curve, counts = figure.axes
        judged = [one["accuracy"] for one in metrics[name] if one["pairs"] >= fewest]
        assert curve.lines[1].get_ydata().tolist() == judged
        heights = [bar.get_height() for bar in counts.patches]
        assert heights == [one["pairs"] for one in metrics[name]]
    bins = metrics["calibration_bins"]
    assert any(one["pairs"] < 10 for one in bins) and any(one["pairs"] >= 10 for one in bins)
    drawn = [one["confidence"] for one in bins if one["pairs"] >= 10]
    assert calibration.axes[0].lines[1].get_xdata().tolist() == drawn
    confidence = [one["confidence"] for one in bins]
    for bar, value in zip(calibration.axes[1].patches, confidence, strict=True):
        assert bar.get_x() <= value <= bar.get_x() + bar.get_width() + 0.003
    assert [bar.get_width() for bar in sources.axes[0].patches] == [
        results[name]["accuracy"] for name in ("a", "b", "all")
    ]
    ends = [line.get_xdata() for line in sources.axes[0].lines[:3]]
    expected = [[one["accuracy_low"], one["accuracy_high"]] for one in results.values()]
    np.testing.assert_array_equal(ends, expected)


def test_length_gaps_are_named_by_what_they_hold(tmp_path, figures):
    draw_pictures(make_results(["a"], rows=500), tmp_path)
    labels = [text.get_text().replace("\n", " ") for text in figures[2].axes[1].get_xticklabels()]
    assert labels[:3] == ["below -200", "-200 to -101", "-100 to -51"]
    assert labels[-3:] == ["51 to 100", "101 to 200", "above 200"]
    assert "1 to 20" in labels and "-20 to -1" in labels


def test_of_many_sources_the_largest_are_drawn(tmp_path, figures):
    results = make_results([f"s{i:02}" for i in range(45)], rows=2)
    results["s07"]["pairs"] = 1
    draw_pictures(results, tmp_path)
    labels = [text.get_text() for text in figures[3].axes[0].get_yticklabels()]
    assert len(labels) == 40
    assert labels[-1] == "all" and "s07" not in labels
    assert "6 smaller sources are left out" in figures[3].axes[0].get_xlabel()


def test_names_that_the_font_lacks_are_numbered_as_in_the_tables(tmp_path, figures):
    results = make_results(["好", "plain é λ ж", "tab\t", "🙂", "x"], rows=5)
    results["x"]["accuracy"] = None  # is in the tables, but is not drawn
    draw_pictures(results, tmp_path)
    labels = [text.get_text() for text in figures[3].axes[0].get_yticklabels()]
    assert list(results) == ["plain é λ ж", "tab\t", "x", "好", "🙂", "all"]
    expected = ["plain é λ ж", *(f"row {i} of report.md's tables" for i in (2, 4, 5)), "all"]
    assert labels == expected


# Okabe and Ito, "Color Universal Design" (2008), without those that nothing uses.
SKY_BLUE = (86, 180, 233)
BLUE, VERMILION = "#0072b2", "#d55e00"


@pytest.fixture(scope="module")
def all_figures(tmp_path_factory):
    """All pictures that the project draws."""
    folder = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as monkeypatch:
        saved = collect(monkeypatch)
        draw_all(folder)
    return saved


def draw_all(folder):
    draw_pictures(CASES["one source"], folder)
    better, worse = np.random.default_rng(0).integers(1, 300, (2, 500))
    lengths = {"prompt": better, "better": better, "worse": worse, "sequence": better + worse}
    gaps = [
        {"above": low, "up_to": high, "pairs": 250, "share": share}
        for low, high, share in ((0, 5, 0.5), (200, None, 0.9))
    ]
    draw_audit(lengths, gaps, 256, folder)
    values = {"loss": 0.7, "accuracy": 0.6, "margin": 0.1}
    lines = [{"step": step, "lr": 1e-5 / step, **values} for step in range(1, 9)]
    lines.append({"step": 8, **{f"eval_{name}": value for name, value in values.items()}})
    draw_curves(lines, folder / "training_curves.png")
    point = {"seed": 1, "accuracy": 0.5}
    points = [
        {"trainer": trainer, "seconds": seconds, **point}
        for trainer in ("packed", "TRL")
        for seconds in (0, 7, 1000)
    ]
    draw_accuracy_over_time(points, folder / "time.png")


def test_all_pictures_have_one_style(all_figures):
    assert len(all_figures) == 8
    tint = np.array(to_rgb(LIGHT)) * 255
    np.testing.assert_allclose((255 - tint) / (255 - np.array(SKY_BLUE)), 0.6, atol=0.02)
    for figure in all_figures:
        assert (figure.dpi, figure.get_figwidth()) == (120, 9)
        for text in figure.findobj(Text):
            if text.get_text() and text.get_visible():
                assert text.get_fontsize() * figure.dpi / 72 / 2 > 10, text  # pixels at half size
        for axes in figure.axes:
            assert axes.get_ylabel() or len(axes.get_yticklabels())
            for line in axes.lines:
                assert line.get_linewidth() * figure.dpi / 72 / 2 >= 1
            colours = {to_hex(line.get_color()) for line in axes.lines}
            colours |= {to_hex(one.get_facecolor()) for one in axes.patches if one.get_fill()}
            colours |= {to_hex(one.get_edgecolor()) for one in axes.patches}
            colours -= {BLUE, VERMILION, LIGHT.lower()}
            assert all(len(set(to_rgb(colour))) == 1 for colour in colours)  # black to white
        assert figure.axes[-1].get_xlabel()


def test_nothing_is_told_by_colour_alone(all_figures):
    compared = 0
    for figure in all_figures:
        for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
            handles = legend.legend_handles if legend else []
            looks = [
                (
                    type(handle),
                    handle.get_linestyle(),
                    handle.get_linewidth(),
                    getattr(handle, "get_marker", str)(),
                )
                for handle in handles
            ]
            assert len(set(looks)) == len(looks)
            compared += len(looks) > 1
    assert compared == 7


def test_nothing_to_draw(tmp_path):
    (tmp_path / "length.png").write_text("of an evaluation before")
    unranked = Tallies()
    unranked.add(
        [
            {
                "index": 0,
                "source": "s",
                "prompt": 1,
                "ranks": [0, 0],
                "scores": [1.0, 2.0],
                "lengths": [3, 4],
            }
        ]
    )
    assert draw_pictures(unranked.results(), tmp_path) == []
    assert list(tmp_path.iterdir()) == []
