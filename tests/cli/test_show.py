"""``alignver show model``: a table of the modules of a model."""

from __future__ import annotations

import pytest

from alignver.cli import main

NET = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path}/net.py:build"


def shown(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main.run(["show", "model", *words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_table_has_a_row_for_each_module(net, capsys):
    code, out, err = shown(capsys, net)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["module", "operators", "output", "parameters", "degree", "analytic"]
    assert rows[3] == ["2", "linear", "2", "x", "2", "10", "1", "yes"]
    assert "not proved: relu" in out
    assert "S: 2.weight, 2.bias" in out


def test_inputs_of_another_shape(net, capsys, tmp_path):
    np = pytest.importorskip("numpy")
    np.savez(tmp_path / "data.npz", X=np.zeros((2, 5), dtype=np.float32))
    code, out, err = shown(capsys, net, "--data", f"{tmp_path}/data.npz")
    assert (code, out) == (2, "")
    assert "cannot be traced" in err


def explained(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main.run(["explain", *words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_code_is_explained(capsys):
    code, out, _ = explained(capsys, "data-conflict")
    assert code == 0
    assert out.startswith("data-conflict: two equal inputs have different targets")
    assert "av.check_data([[0.0], [0.0]], [0, 1])" in out
    code, out, _ = explained(capsys)
    assert code == 0
    assert len(out.splitlines()) > 100
    code, out, err = explained(capsys, "data-conflit")
    assert (code, out) == (2, "")
    assert "did you mean 'data-conflict'?" in err
