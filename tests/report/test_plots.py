"""Figures show the numbers they are given, on the right axes, told apart without colours, and leave nothing behind."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from alignver.errors import InvalidInput, MissingDependency
from alignver.report import plots, verdict_plots

STEPS = [0, 1, 2, 3]


def luminance(colour: str) -> float:
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_lines_differ_in_dashes_or_markers_whatever_their_colours():
    styles = list(itertools.islice(plots.line_styles(), 35))
    seen = {(str(entry["linestyle"]), entry.get("marker")) for entry in styles}
    assert len(seen) == len(styles)


def test_colours_go_from_dark_to_light():
    values = [luminance(colour) for colour in plots.COLOURS]
    assert values == sorted(values)
    assert luminance(plots.FAINT) < 0.6  # dark enough on paper


def test_curves_are_the_numbers_and_short_ones_end_early():
    ax = plots.curves(STEPS, {"a": [4, 3, 2, 1], "b": [1, 2]}, x_label="epoch", y_label="loss")
    first, second = ax.lines
    assert first.get_xdata().tolist() == STEPS
    assert first.get_ydata().tolist() == [4, 3, 2, 1]
    assert second.get_xdata().tolist() == [0, 1]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert first.get_linestyle() != second.get_linestyle()


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.curves(STEPS, {"a": STEPS}, x_label="", y_label="", ax=ax),
        lambda ax: plots.bands({"a": [[1.0, 2.0], [2.0, 3.0]]}, x_label="", y_label="", ax=ax),
        lambda ax: plots.training_and_q(STEPS, STEPS, {"press": (STEPS, STEPS)}, ax=ax),
        lambda ax: plots.representation_change(STEPS, {"a": STEPS}, ax=ax),
        lambda ax: plots.residuals(STEPS, {"a": (STEPS, STEPS)}, ax=ax),
        lambda ax: plots.gap([1, 2], [1, 2], [1, 2], ax=ax),
        lambda ax: verdict_plots.spectrum([1.0], {"press": 1e-16}, ax=ax),
        lambda ax: verdict_plots.rules({"press": 1e-16}, {"press": 3}, ax=ax),
        lambda ax: verdict_plots.turning([1e-16, 1.0], [0.0, 1.0], tau=1e-14, limit=1e-8, ax=ax),
        lambda ax: verdict_plots.reach([1.0, 10.0], [0.5, 0.1], [0.6, 0.1], ax=ax),
        lambda ax: verdict_plots.occupancy([[0.5]], ax=ax),
        lambda ax: verdict_plots.conflict([[[1.0]]], ["3"], axes=[ax])[0],
        lambda ax: verdict_plots.pairs([([[1.0]], [[1.0]])], ["3"], axes=[ax])[0],
    ],
)
def test_given_axes_are_drawn_on_and_returned_and_the_rest_of_matplotlib_is_left_alone(draw):
    import matplotlib

    before = dict(matplotlib.rcParams)
    _, (ax,) = plots.panels(1)
    assert draw(ax) is ax
    assert ax.has_data()
    assert draw(None if not {"conflict", "pairs"} & set(draw.__code__.co_names) else ax).figure is not None
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_bands_are_one_standard_deviation():
    ax = plots.bands({"a": [[1.0, 4.0], [3.0, 4.0]]}, x_label="epoch", y_label="loss")
    assert ax.lines[0].get_ydata().tolist() == [2.0, 4.0]
    path = ax.collections[0].get_paths()[0].vertices
    at_one = path[path[:, 0] == 1.0, 1]
    assert at_one.max() == pytest.approx(2 + np.sqrt(2))
    assert at_one.min() == pytest.approx(2 - np.sqrt(2))
    assert ax.get_legend().get_texts()[0].get_text() == "a, 2 runs"


def test_q_is_a_staircase_on_an_axis_of_its_own():
    ax = plots.training_and_q(STEPS, [0.5, 0.2, 0.1, 0.0], {"press": ([0, 0, 1, 1], [0, 1, 2, 2])}, title="two moons")
    (line,) = ax.right.lines
    assert line.get_ydata().tolist() == [0, 1, 2, 2]  # the upper end
    assert line.get_drawstyle() == "steps-post"
    band = ax.right.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 0
    assert ax.lines[0].get_ydata().tolist() == [0.5, 0.2, 0.1, 0.0]
    names = [text.get_text() for text in ax.right.get_legend().get_texts()]
    assert names == ["training error", "$Q_T$ press"]
    assert all(float(tick).is_integer() for tick in ax.right.get_yticks())


def test_the_change_is_logarithmic_and_leaves_zeros_out():
    ax = plots.representation_change(STEPS, {"sgd": [0.0, 1.0, 10.0, None]})
    assert ax.get_yscale() == "log"
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [True, False, False, True]


def test_a_probed_change_has_its_interval():
    ends = ([0.0, 0.5, 5.0], [0.0, 2.0, 20.0])
    ax = plots.representation_change([0, 1, 2], {"sgd": [0.0, 1.0, 10.0]}, intervals={"sgd": ends})
    points = ax.collections[0].get_paths()[0].vertices
    assert points[points[:, 0] == 2, 1].min() == 5.0
    assert points[points[:, 0] == 2, 1].max() == 20.0


def test_residuals_show_zero_and_what_a_member_may_have():
    ax = plots.residuals([0, 1], {"press": ([0.0, 1e-3], [0.0, 1e-2])}, limit=1e-8)
    assert ax.lines[0].get_ydata().tolist() == [1e-17, 1e-2]
    assert ax.lines[1].get_ydata()[0] == 1e-8


def test_the_gap_has_its_bound_and_tau():
    ax = plots.gap([1, 2, 3], [0.5, 0.1, 0.02], [4.0, 2.0, 1.3], tau=2)
    loss, bound, mark = ax.lines
    assert loss.get_ydata().tolist() == [0.5, 0.1, 0.02]
    assert bound.get_ydata().tolist() == [4.0, 2.0, 1.3]
    assert mark.get_xdata() == [2, 2]
    assert ax.get_yscale() == "log"


def test_a_run_shows_loss_gap_and_error():
    figure = plots.training([1, 2], [0.7, 0.2], [0.6, 0.1], [0.5, 0.0], tau=1)
    top, bottom = figure.axes
    assert [line.get_label() for line in top.lines[:2]] == ["loss", "bound of the gap"]
    assert (top.get_yscale(), bottom.get_yscale()) == ("log", "linear")
    assert bottom.lines[0].get_ydata().tolist() == [0.5, 0.0]
    assert len(plots.training([1, 2], [0.7, 0.0], [0.7, 0.0]).axes) == 1
    clipped = plots.training([1, 2, 3], [0.7, 1e-9, 0.0], [0.7, 1e-9, -0.0]).axes[0]
    assert clipped.get_yscale() == "log"
    assert clipped.lines[0].get_ydata().tolist() == [0.7, 1e-9, 1e-9]
    both = plots.training([1, 2], [0.7, 0.2], [0.7, 0.2], [0.5, 0.0], test_error=[0.5, 0.25]).axes[1]
    assert [line.get_label() for line in both.lines] == ["training", "test"]


def test_a_spectrum_counts_the_rank_at_each_tolerance():
    levels = [1e-14, 3.0, 1e-3, 0.0]
    ax = verdict_plots.spectrum(levels, {"press": 1e-15, "golub": 1e-13})
    values, zeros, press, golub = ax.lines
    assert values.get_ydata().tolist() == [3.0, 1e-3, 1e-14]
    assert values.get_xdata().tolist() == [1, 2, 3]
    assert zeros.get_xdata().tolist() == [4]
    assert press.get_label() == "press 1.0e-15: rank 3"
    assert golub.get_label() == "golub 1.0e-13: rank 2"
    assert press.get_ydata()[0] == 1e-15
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < 1e-15


@pytest.mark.parametrize("levels", [[], [[1.0]], [np.nan], [-1.0], [np.inf]])
def test_what_is_no_spectrum_is_refused(levels):
    with pytest.raises(InvalidInput, match="levels"):
        verdict_plots.spectrum(levels, {})


def test_rules_stand_in_order_with_their_ranks_and_the_levels():
    tolerances, ranks = {"golub": 2e-11, "press": 3e-13, "odd": np.inf}, {"golub": 4, "press": 5, "odd": 0}
    ax = verdict_plots.rules(tolerances, ranks, [1e-12, 0.0], deciding="golub")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["golub", "press"]
    level, golub, press = ax.lines
    assert level.get_xdata() == [1e-12, 1e-12]
    assert (golub.get_xdata()[0], press.get_xdata()[0]) == (2e-11, 3e-13)
    assert (golub.get_fillstyle(), press.get_fillstyle()) == ("full", "none")
    assert [text.get_text() for text in ax.texts] == ["rank 4", "rank 5"]
    low, high = ax.get_xlim()
    assert low < 3e-13 < 2e-11 < high
    with pytest.raises(InvalidInput):
        verdict_plots.rules({"odd": np.inf}, {"odd": 0})


def test_rho_is_constant_from_each_tau_on():
    ax = verdict_plots.turning([1e-16, 1e-14, 1.0], [0.0, 0.1, 1.0], tau=1e-13, limit=1e-8)
    curve = ax.lines[0]
    assert curve.get_drawstyle() == "steps-post"
    assert curve.get_ydata().tolist() == [0.0, 0.1, 1.0]
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (band.x0, band.x1) == (pytest.approx(1e-14), pytest.approx(1e-12))
    assert ax.get_ylim()[0] == 0.0
    wide = verdict_plots.turning([1e-16, 1.0], [0.0, 1.0], tau=1e-13, limit=1e-8, band=(1e-14, 1e-11))
    assert "band of the verdict" in [text.get_text() for text in wide.get_legend().get_texts()]


def test_what_limited_parameters_reach_and_kappa():
    ax = verdict_plots.reach([1.0, 10.0], [0.5, 0.1], [0.7, 0.1], kappa=(24.0, 25.0), shuffled=60.0)
    curve, shuffled = ax.lines
    assert curve.get_xdata().tolist() == [1.0, 10.0]
    assert curve.get_ydata() == pytest.approx([0.6, 0.1])
    assert set(shuffled.get_xdata()) == {60.0}
    bar = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (bar.x0, bar.x1) == (pytest.approx(24.0), pytest.approx(25.0))
    assert len(verdict_plots.reach([], [], [], kappa=(3.0, 3.0)).patches) == 1
    for given in (([], [], []), ([1.0], [0.1], [])):
        with pytest.raises(InvalidInput, match="budgets"):
            verdict_plots.reach(*given)


def test_gates_are_sorted_into_a_staircase():
    staircase = np.tri(4)
    shuffled = staircase[[2, 0, 3, 1]][:, [3, 1, 0, 2]]
    drawn = verdict_plots.occupancy(shuffled).images[0]
    assert np.asarray(drawn.get_array()).tolist() == staircase[::-1, ::-1].tolist()
    assert drawn.get_clim() == (0.0, 1.0)
    with pytest.raises(InvalidInput, match="gates"):
        verdict_plots.occupancy([1.0, 0.0])


def test_two_images_side_by_side_share_one_scale():
    image = np.arange(12.0).reshape(1, 3, 4)
    left, right = verdict_plots.conflict([image, image / 2], ["label 3", "label 5"], names=["sample 1", "sample 2"])
    assert left.get_title() == "sample 1\nlabel 3"
    assert left.images[0].get_array().shape == (3, 4)
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0.0, 11.0)
    (colour,) = verdict_plots.conflict([np.ones((3, 5, 4))], ["x"])
    assert colour.images[0].get_array().shape == (5, 4, 3)
    for images, labels in (([], []), ([image], []), ([np.ones(3)], ["x"])):
        with pytest.raises(InvalidInput):
            verdict_plots.conflict(images, labels)


def test_pairs_stand_in_rows_with_the_two_of_a_pair_side_by_side():
    image = np.arange(48.0).reshape(3, 4, 4)
    axes = verdict_plots.pairs([(image, image)] * 5, [f"pair {k}\nlabel $" for k in range(5)])
    figure = axes[0].figure
    assert len(axes) == 5
    assert len(figure.axes) == 6  # the last row has an empty place
    assert not figure.axes[-1].axison
    left, right = axes[4].images
    assert left.get_extent()[1] < right.get_extent()[0]
    assert axes[0].get_xlim() == (0.0, right.get_extent()[1])
    assert left.get_array().shape == (4, 4, 3)
    assert (left.get_array().min(), left.get_array().max()) == (0.0, 1.0)
    assert axes[1].get_title() == "pair 1\nlabel \\$"
    (tall,) = verdict_plots.pairs([(np.ones((4000, 2)), np.ones((4000, 2)))], ["x"])
    assert tall.images[0].get_array().shape[0] <= 160
    assert tall.figure.get_figheight() < 12
    for images, titles in (([], []), ([(image, image)], []), ([(np.ones(3), np.ones(3))], ["x"])):
        with pytest.raises(InvalidInput):
            verdict_plots.pairs(images, titles)
    with pytest.raises(InvalidInput, match="finite"):
        verdict_plots.pairs([(np.full((2, 2), np.nan),) * 2], ["x"])


def test_dollars_and_controls_in_labels_are_letters():
    ax = plots.curves(STEPS, {"cost $\\frac{": STEPS, "a\x00b\u202e": STEPS}, x_label="x", y_label="y")
    text = plots.svg(ax.figure, "p")
    assert "cost" in text
    assert "\x00" not in text
    assert "\u202e" not in text


def test_an_svg_takes_its_colours_from_the_page_and_keeps_its_names_to_itself():
    def drawn(prefix: str) -> str:
        return plots.svg(plots.curves(STEPS, {"<b>": STEPS, "c": STEPS}, x_label="x", y_label="y").figure, prefix)

    one = drawn("one")
    assert one == drawn("one")  # the same figure, the same bytes
    assert one.startswith("<svg")
    assert "<b>" not in one
    assert "&lt;b&gt;" in one
    assert "var(--ink, #000000)" in one
    assert "var(--c1, #0072b2)" in one.lower()
    assert all(name.startswith("one-") for name in re.findall(r'\bid="([^"]*)"', one))
    assert "<metadata" not in one


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"alignver\[plots\]"):
        plots.panels(1)


def test_every_picture_of_the_page_stands_below_the_code_that_draws_it():
    docs = Path(__file__).parents[2] / "docs"
    spec = importlib.util.spec_from_file_location("report_pictures", docs / "report_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shown = re.findall(r"!\[[^\]]+\]\(_generated/([\w.-]+)\)", (docs / "reports.md").read_text())
    drawn = {picture: code for code, picture in module.blocks() if picture is not None}
    assert list(drawn) == shown
    assert all(re.search(r"^\(?ax\b.*=", code, re.MULTILINE) for code in drawn.values())
