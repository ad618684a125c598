"""Table 2 as an item: the paper's row beside ours, with what our row cost; features kept on disk."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from alignver.data.archives import Dataset
from alignver.errors import InvalidInput
from alignver.experiments import distinct_images, table2
from alignver.experiments.conduct import Setting, conduct
from alignver.experiments.networks import resnet18
from alignver.results import Subject, Verdict


@pytest.fixture
def small(monkeypatch):
    """40 images for Semeion's 1000, and a network with 16 features."""
    rng = np.random.default_rng(0)
    data = Dataset("Small", rng.integers(0, 2, (40, 16, 16), dtype=np.uint8), np.arange(40) % 10, "made here", "none")
    row = table2.Row(40, 17, 5, lambda folder: data)
    monkeypatch.setattr(table2, "PAPER", {"semeion": row})
    for module in (table2, distinct_images):
        monkeypatch.setattr(module, "resnet18", lambda *args, **options: resnet18(*args, width=2, **options))
    monkeypatch.setattr(table2, "FEATURES", 16)
    return data


def test_the_papers_row_beside_ours(small, tmp_path):
    outcome = conduct(table2.TABLE2, Setting(cache=tmp_path / "features"), folder=tmp_path / "run")
    (result,) = outcome.results
    assert result.verdict is Verdict.HOLDS
    paper, ours = result.measured["paper"], result.measured["ours"]
    assert (paper["n"], paper["m_{H-1}"], paper["m_H"], paper["proof"]) == (40, 17, 5, False)
    assert (ours["n"], ours["m_{H-1}"], ours["m_H"]) == (40, 17, 5)
    assert ours["press"] is ours["golub"] is ours["proof"] is True
    assert ours["smallest proved width"] == ours["limit"] == 3
    assert ours["seconds"] > 0
    assert ours["peak memory"] is None or ours["peak memory"].endswith(" GB")
    assert set(paper) <= set(ours)
    assert paper["seconds"] is None
    assert "Small, seed 0" in result.reason


@pytest.mark.parametrize("twice", [False, True])
def test_the_row_of_the_network(small, tmp_path, twice):
    if twice:  # the features are read from the cache: the certificate proves them again
        table2._measure_network("semeion", 0, Setting(cache=tmp_path))
    (result,) = conduct(table2.TABLE2_NETWORK, Setting(cache=tmp_path)).results
    assert (result.verdict, result.subject) == (Verdict.HOLDS, Subject.NETWORK)
    paper, ours = result.measured["paper"], result.measured["ours"]
    assert (paper["n"], paper["m_{H-1}"], paper["m_H"]) == (40, 17, 5)
    assert (ours["subject"], ours["rigor"], ours["re-check"]) == ("NETWORK", "PROOF", "HOLDS")
    assert 0.0 < ours["features delta"] < 1e-6
    assert ours["m_H"] == ours["limit"] == 3
    assert set(paper) <= set(ours)
    assert "in real arithmetic" in result.reason


def test_equal_images_refute_the_row_of_the_network(small, monkeypatch):
    x = np.repeat(small.x[:1], 40, axis=0)
    monkeypatch.setitem(table2.PAPER, "semeion", table2.Row(40, 17, 5, lambda folder: dataclasses.replace(small, x=x)))
    (result,) = conduct(table2.TABLE2_NETWORK).results
    assert result.verdict is Verdict.FAILS
    assert "FAILS with PROOF" in result.reason


def test_without_repeated_images_the_row_is_proved(small, monkeypatch, tmp_path):
    again = small.take(np.r_[0, 0, np.arange(40), 7])
    monkeypatch.setitem(table2.PAPER, "semeion", table2.Row(43, 17, 6, lambda folder: again))
    setting = Setting(datasets=("semeion",), cache=tmp_path)
    (with_repeated,) = conduct(table2.TABLE2_NETWORK, setting).results
    assert with_repeated.verdict is Verdict.FAILS
    assert "at most 40, below n = 43" in with_repeated.reason
    (result,) = conduct(distinct_images.TABLE2_DISTINCT, setting).results
    assert (result.verdict, result.subject) == (Verdict.HOLDS, Subject.NETWORK)
    paper, ours = result.measured["paper"], result.measured["ours"]
    assert (paper["n"], ours["n"], ours["repeated"]) == (43, 40, 3)
    assert (ours["subject"], ours["rigor"], ours["re-check"]) == ("NETWORK", "PROOF", "HOLDS")
    assert set(paper) <= set(ours)


def test_features_are_kept_by_content(small, tmp_path):
    first = table2.features(small, cache=tmp_path)
    assert (first.shape, first.dtype) == ((40, 16), np.float32)
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    np.testing.assert_array_equal(table2.features(small, cache=tmp_path), table2.features(small))
    assert file.stat().st_mtime_ns == stamp
    table2.features(small.take(np.arange(39)), cache=tmp_path)
    table2.features(small, seed=1, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_cache_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cache: got"):
        table2.features(small, cache=tmp_path / "file" / "inside")
