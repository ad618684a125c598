"""Features of a layer: the right rows, the model as it was, and refusals that name what is wrong."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.experiments.networks import fix_statistics, resnet18
from alignver.experiments.table2 import features, table2
from alignver.network.feature_extraction import estimate_row_error, extract_features, feature_blocks, save_features


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2))


def test_rows_are_those_of_the_layer():
    net, X = network(), np.random.default_rng(0).standard_normal((11, 4))
    with torch.no_grad():
        reference = copy.deepcopy(net).eval()[:3](torch.tensor(X, dtype=torch.float32)).numpy()
    # Batches of other sizes are summed in another order: five terms and a few operations in float32, then tanh, whose
    # slope is at most one. Relative to the largest sum of magnitudes, not to a result that may be near zero.
    size = (np.abs(X) @ np.abs(net[0].weight.detach().numpy()).T + np.abs(net[0].bias.detach().numpy())).max()
    for batch in (1, 4, 100):
        computed = extract_features(net, X, "2", batch_size=batch)
        np.testing.assert_allclose(computed, reference, rtol=0, atol=2 * 10 * np.finfo(np.float32).eps * size)
    assert extract_features(net, X).shape == (11, 2)
    assert [len(block) for block in feature_blocks(net, X, "2", batch_size=4)] == [4, 4, 3]


def test_model_comes_out_as_it_went_in():
    net = network().train()
    net[0].eval()
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    extract_features(net, np.ones((5, 4)), "2")
    assert [module.training for module in net] == [False, True, True, True, True]
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_hooks for module in net.modules())


def test_images_are_flattened_and_in_place_layers_change_nothing():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True))
    X = np.random.default_rng(0).standard_normal((3, 1, 5, 5)).astype(np.float32)
    Z = extract_features(net, X, "0")
    assert Z.shape == (3, 18)
    assert Z.min() < 0


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.state = nn.LSTM(4, 4)

    def forward(self, x):
        self.state(x)
        return self.layer(self.layer(x))


@pytest.mark.parametrize(
    ("layer", "words"),
    [("layer", "run 2 times"), ("unused", "run 0 times"), ("state", "a tuple"), ("lair", "such as layer")],
)
def test_layers_that_have_no_features(layer, words):
    with pytest.raises(InvalidInput, match=words):
        extract_features(Twice(), np.ones((2, 4)), layer)


class Counted(nn.Linear):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__(2, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_a_forward_that_writes_is_refused():
    model = Counted()
    with pytest.raises(InvalidInput, match="writes to 'calls' in place"):
        extract_features(model, torch.ones(2, 2))
    assert model.calls == 0


def test_inputs_keep_their_fractions_beside_integer_parameters():
    model = nn.Sequential(nn.Module(), nn.Linear(2, 3))
    model[0].register_parameter("size", nn.Parameter(torch.tensor([2]), requires_grad=False))
    model[0].forward = lambda x: x
    X = torch.tensor([[0.5, 0.25]])
    np.testing.assert_array_equal(extract_features(model, X), model[1](X).detach().numpy())


def test_inputs_that_do_not_fit():
    with pytest.raises(InvalidInput, match="needs 4 numbers for each sample"):
        extract_features(network(), np.ones((2, 5)), "2")
    with pytest.raises(InvalidInput, match="batch_size"):
        extract_features(network(), np.ones((2, 4)), "2", batch_size=0)
    net = network()
    with torch.no_grad():
        net[0].weight[0, 0] = 1e38
    X = np.ones((5, 4))
    X[3] = 1e30
    with pytest.raises(InvalidInput, match=r"the feature .* at \(3, 0\)"):
        extract_features(net, X, "0", batch_size=2)


def test_saved_features_are_the_same(tmp_path):
    net, X = network(), np.random.default_rng(0).standard_normal((50, 4))
    stored = save_features(tmp_path / "Z.npy", net, X, "2", batch_size=7)
    np.testing.assert_array_equal(stored, extract_features(net, X, "2", batch_size=7))
    assert (stored.dtype, stored.filename) == (np.float32, tmp_path / "Z.npy")
    with pytest.raises(InvalidInput, match=r"file: got .* which does not exist"):
        save_features(tmp_path / "nowhere" / "Z.npy", net, X, "2")
    with torch.no_grad():
        net[0].weight[0, 0] = 1e38
    X[33] = 1e30
    with pytest.raises(InvalidInput, match=r"the feature .* at \(33, 0\)"):
        save_features(tmp_path / "bad.npy", net, X, "0", batch_size=7)
    assert [path.name for path in tmp_path.iterdir()] == ["Z.npy"]


def test_estimated_row_error():
    net, X = network(), np.random.default_rng(0).standard_normal((50, 4))
    estimate = estimate_row_error(net, X, "2")
    assert 0.0 < estimate < 1e-5
    wide = extract_features(copy.deepcopy(net).double(), X, "2")
    assert np.linalg.norm(extract_features(net, X, "2") - wide, axis=1).max() <= estimate
    assert next(net.parameters()).dtype == torch.float32
    assert estimate_row_error(copy.deepcopy(net).double(), X, "2") == 0.0
    with pytest.raises(InvalidInput, match="sample"):
        estimate_row_error(net, X, "2", sample=0)


def test_resnet_has_512_features_and_fixed_statistics():
    images = torch.rand(64, 1, 8, 8)
    model = fix_statistics(resnet18(1, seed=3), images, batch_size=32)
    assert not model.training
    assert extract_features(model, images[:2], "features").shape == (2, 512)
    again = fix_statistics(resnet18(1, seed=3), images, batch_size=32)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), again.buffers()))


@pytest.mark.slow
def test_table_2_semeion(tmp_path):
    row, data, results = table2("semeion", cache=tmp_path)
    assert len(data) == row.n == 1000
    assert results["paper width"].measured["width"] == row.width == 4
    assert [result.rigor.value for result in results.values()] == ["PROOF", "PROOF"]
    assert [result.verdict.value for result in results.values()] == ["HOLDS", "HOLDS"]
    assert len(list(tmp_path.glob("features-*.npy"))) == 1
    assert isinstance(features(data, cache=tmp_path), np.memmap)


def test_table_2_bad_input(monkeypatch):
    monkeypatch.delenv("ALIGNVER_DATA", raising=False)
    with pytest.raises(InvalidInput, match="dataset"):
        table2("imagenet")
    with pytest.raises(InvalidInput, match="ALIGNVER_DATA"):
        table2("mnist")
