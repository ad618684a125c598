"""Safe exploration of a network itself: features with proved errors, certificates, what falls back and says why."""

from __future__ import annotations

import json
import os

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.errors import InvalidInput
from alignver.kernel.network.exploration import Features
from alignver.network.enclosed_features import enclose_features, inputs_again
from alignver.results import Rigor, Subject, Verdict
from tests.reseal import resealed


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)),
        nn.Conv2d(1, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.Softplus(100),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(20, 3),
    ).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(130, 36, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def proved(images):
    return av.check_safe_exploration(convolutional(), X=images, layer="5")


@pytest.fixture(scope="module")
def inputs(proved, images):
    return inputs_again(proved.certificate, convolutional(), images)[0]


def test_the_proof_is_about_the_network(proved, inputs, tmp_path):
    assert (proved.verdict, proved.rigor, proved.subject) == (Verdict.HOLDS, Rigor.PROOF, Subject.NETWORK)
    assert proved.code == "exploration-network"
    assert proved.measured["width"] == 7  # 130 / 21, rounded up
    assert 0.0 < proved.measured["network"]["delta"] < 1e-12
    assert proved.evidence[0].startswith("in real arithmetic")
    proved.certificate.save(tmp_path / "proof")
    again = av.recheck(tmp_path / "proof", **inputs)
    assert (again.verdict, again.subject) == (Verdict.HOLDS, Subject.NETWORK), again.reason
    assert "this network's features at theta and x has rank 130" in again.statement


def test_the_errors_are_bounds():
    """Against 60 digits, with weights of which float64 loses nearly all digits."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    with torch.no_grad():
        net[2].weight[:, 1::2] = -net[2].weight[:, ::2] * 2.0**30 + 1e-3
    X = torch.randn(70, 3, dtype=torch.float64)
    enclosed = enclose_features(net, X)
    with mpmath.workdps(60):
        for i in range(len(X)):
            x = mpmath.matrix(X[i].tolist())
            hidden = mpmath.matrix(net[0].weight.tolist()) * x + mpmath.matrix(net[0].bias.tolist())
            exact = mpmath.matrix(net[2].weight.tolist()) * hidden.apply(mpmath.tanh)
            exact += mpmath.matrix(net[2].bias.tolist())
            assert mpmath.norm(exact - mpmath.matrix(enclosed.Z[i].tolist())) <= enclosed.delta
    assert enclosed.delta > 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: resealed(c, delta=c.constants["delta"] / 4), "errors of the features exceed delta"),
        (lambda c: resealed(c, delta=0.0), "errors of the features exceed delta"),
        (lambda c: resealed(c, delta=1.0), "separated"),
        (lambda c: resealed(c, s_min=c.constants["s_min"] * 4), ""),
        (lambda c: resealed(c, rank=131), ""),
        (lambda c: resealed(c, width=8), ""),
        (lambda c: resealed(c, add_constant=False), "constant of their own"),
        (lambda c: resealed(c, {"floors": c.data["floors"] * 1.5}), "not proved"),
        (lambda c: resealed(c, {"thresholds": c.data["thresholds"][::-1].copy()}), "descend"),
        (lambda c: resealed(c, {"direction": np.ones(21)}), ""),
        (lambda c: resealed(c, {"graph": np.frombuffer(b"{}", np.uint8)}), ""),
        (lambda c: resealed(c, {"graph": other_graph()}), ""),
    ],
)
def test_forged_certificates_are_refused(proved, inputs, change, words):
    result = av.recheck(change(proved.certificate), **inputs)
    assert result.verdict is Verdict.FAILS
    assert words in result.reason


def other_graph():
    return av.check_safe_exploration(nn.Linear(36, 20).eval(), X=torch.randn(20, 36)).certificate.data["graph"]


def test_other_inputs_are_refused(proved, inputs, images):
    for name in ("parameters", "x"):
        changed = {**inputs, name: np.nextafter(inputs[name], 9.0)}
        assert "digests differ" in av.recheck(proved.certificate, **changed).reason
    with pytest.raises(InvalidInput, match="inputs"):
        av.recheck(proved.certificate, parameters=inputs["parameters"])
    with pytest.raises(InvalidInput, match="graph of another network"):
        inputs_again(proved.certificate, nn.Sequential(*list(convolutional())[:5], nn.Tanh()).eval(), images)
    with pytest.raises(InvalidInput, match="no graph"):
        inputs_again(av.check_rank(np.eye(2)).certificate, convolutional(), images)


def test_integers_are_compiled_batch_by_batch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(300, 9), nn.Flatten(), nn.Linear(18, 12), nn.GELU())
    X = torch.arange(140).reshape(140, 1) + torch.tensor([[0, 150]])
    result = av.check_safe_exploration(net, X=X)
    assert (result.verdict, result.subject) == (Verdict.HOLDS, Subject.NETWORK), result.evidence
    with torch.no_grad():
        expected = net.double()(X).numpy()
    enclosed = enclose_features(net, X)
    np.testing.assert_allclose(enclosed.Z, expected, rtol=0, atol=1e-13)


class Decided(nn.Module):
    """Functions that compare or cast the inputs themselves."""

    def __init__(self, function):
        super().__init__()
        self.function, self.last = function, nn.Linear(1, 2)

    def forward(self, x):
        return self.last(self.function(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda x: x.masked_fill(x.reshape(-1, 1) <= 0, 0.0),
        lambda x: x * (x > 0).to(x.dtype),
        lambda x: x * x.to(torch.bool).to(x.dtype) + x.to(torch.int64),
    ],
    ids=["where", "masked_fill", "product", "cast"],
)
def test_decisions_about_the_inputs_are_those_of_their_batch(function):
    torch.manual_seed(0)
    net = Decided(function).double()
    X = torch.cat([torch.linspace(1, 2, 64), torch.linspace(-2, -1, 64)]).double()[:, None]  # batches of 64
    with torch.no_grad():
        expected = net(X).numpy()
    np.testing.assert_allclose(enclose_features(net, X).Z, expected, rtol=0, atol=1e-13)


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Rounded(nn.Module):
    def forward(self, x):
        return torch.floor(100 * x)


class Branching(nn.Module):
    def forward(self, x):
        return x if float(x.detach().sum()) > 0 else -x


@pytest.mark.parametrize("last", [Bessel(), Rounded(), Branching()])
def test_what_cannot_be_enclosed_falls_back(last):
    torch.manual_seed(0)
    result = av.check_safe_exploration(nn.Sequential(nn.Linear(4, 6), last), X=torch.randn(20, 4))
    assert result.subject is Subject.COMPUTED_MATRIX
    assert result.evidence[0].startswith("nothing is proved about the network: ")
    assert len(result.evidence[0]) > 45
    assert result.certificate is None or "Z" in result.certificate.inputs


class Shifted(nn.Module):
    """A function of its inputs and of what else it is given."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.weight * x + self.function(self, x)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda net, x: 0.0 if net.weight.requires_grad else x * x, "the features differ by up to"),
        (lambda net, x: torch.where(x.half() == x, x * x, 0.0), "the features differ by up to"),
        (lambda net, x: x * x if len(x) >= 40 else 0.0, "differ between a batch of 50"),
        (lambda net, x: (torch.arange(len(x)) >= 40).float()[:, None], "the sample's place in the batch"),
    ],
    ids=["requires_grad", "rounded", "size", "place"],
)
def test_what_is_not_a_function_of_the_sample_falls_back(function, words):
    X = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    result = av.check_safe_exploration(nn.Sequential(Shifted(function), nn.Linear(4, 6)), X=X)
    assert result.subject is Subject.COMPUTED_MATRIX
    assert words in result.evidence[0]


def test_errors_that_are_too_large_fall_back():
    """The features of float64 have full rank by their rounding errors alone."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Unflatten(1, (1, 1)), nn.Flatten()).double()
    big = nn.Sequential(nn.Linear(3, 6).double(), nn.Tanh(), net[2])
    with torch.no_grad():
        big[0].weight[:] = torch.randn(6, 3, dtype=torch.float64) * 1e-3
        big[0].weight[1:] = big[0].weight[:1] * (1 + 1e-16 * torch.arange(5, dtype=torch.float64)[:, None])
    result = av.check_safe_exploration(big, X=torch.randn(14, 3, dtype=torch.float64), width=2)
    assert result.subject is Subject.COMPUTED_MATRIX
    assert "its features are only proved to within" in result.evidence[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "gram"}, "for the staircase only"),
        ({"delta": 1e-6}, "delta was given"),
        ({"certify": False}, "no certificate was requested"),
    ],
)
def test_what_is_not_asked_of_the_network(options, words, images):
    result = av.check_safe_exploration(convolutional(), X=images, layer="5", **options)
    assert result.verdict is Verdict.HOLDS
    assert result.subject is Subject.COMPUTED_MATRIX
    assert words in result.evidence[0]


def test_a_batch_in_the_folder_that_is_not_whole_is_computed_again(images, tmp_path):
    """Fewer rows would leave others without a value, and more would not fit."""
    net = convolutional()
    whole = enclose_features(net, images, "5", folder=tmp_path)
    (place,) = tmp_path.iterdir()
    files = sorted(place.iterdir(), key=lambda file: int(file.stem))
    rows = np.load(files[-1])
    for other in (rows[:-1], rows[:0], np.concatenate([rows, rows]), rows[0], rows.astype("f4"), rows * np.nan):
        np.save(files[-1], other)
        again = enclose_features(net, images, "5", folder=tmp_path)
        assert again.resumed == len(files) - 1
        assert np.array_equal(again.Z, whole.Z)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000, 9), }\n"
    for content in (b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header, b"\x93NUMPY\1\0\4\0{'a"):
        files[-1].write_bytes(content)
        assert enclose_features(net, images, "5", folder=tmp_path).resumed == len(files) - 1
    files[-1].unlink()
    os.mkfifo(files[-1])  # reading it would block
    assert enclose_features(net, images, "5", folder=tmp_path).resumed == len(files) - 1


def test_an_interrupted_run_continues(images, tmp_path, monkeypatch):
    compute, calls = Features.enclose, []

    def limited(self, start):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(start)
        return compute(self, start)

    net = convolutional()
    monkeypatch.setattr(Features, "enclose", limited)
    with pytest.raises(KeyboardInterrupt):
        av.check_safe_exploration(net, X=images, layer="5", folder=tmp_path)
    (place,) = tmp_path.iterdir()
    files = sorted(place.iterdir())
    assert 1 <= len(files) <= 2
    monkeypatch.setattr(Features, "enclose", compute)
    result = av.check_safe_exploration(net, X=images, layer="5", folder=tmp_path)
    assert (result.verdict, result.rigor, result.subject) == (Verdict.HOLDS, Rigor.NUMERICAL, Subject.NETWORK)
    assert "no proof until the certificate is verified" in " ".join(result.evidence)
    arrays = inputs_again(result.certificate, net, images)[0]
    assert av.recheck(result.certificate, **arrays).verdict is Verdict.HOLDS
    files[0].write_bytes(files[0].read_bytes()[:-8])
    assert enclose_features(net, images, "5", folder=tmp_path).resumed == 2  # the damaged one is computed again
    with torch.no_grad():
        net[1].bias += 1.0
    assert enclose_features(net, images, "5", folder=tmp_path).resumed == 0  # another network
    with pytest.raises(InvalidInput, match="folder"):
        av.check_safe_exploration(net, X=images, layer="5", folder="/proc/none")


def test_too_few_columns_need_no_features(images, monkeypatch):
    monkeypatch.setattr(Features, "enclose", None)
    result = av.check_safe_exploration(convolutional(), X=images, layer="5", width=6)
    assert (result.verdict, result.code) == (Verdict.FAILS, "exploration-count")
    assert (result.rigor, result.subject) == (Rigor.PROOF, Subject.NETWORK)
    assert "nothing is proved" not in str(result)


class Pair(nn.Linear):
    """A function of two inputs."""

    def forward(self, left, right):
        return super().forward(left * right)


def test_inputs_in_parts(images):
    torch.manual_seed(0)
    net = Pair(36, 3)
    parts = (images, images)
    result = av.check_safe_exploration(net, X=parts)
    assert (result.verdict, result.subject) == (Verdict.HOLDS, Subject.NETWORK)  # and not two samples that are equal
    assert result.measured["samples"] == len(images)
    again = av.recheck(result.certificate, **inputs_again(result.certificate, net, parts)[0])
    assert again.verdict is Verdict.HOLDS, again.reason
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=50)
    streamed = av.check_safe_exploration(convolutional(), X=loader, layer="5")
    assert (streamed.verdict, streamed.subject) == (Verdict.HOLDS, Subject.NETWORK)
    with pytest.raises(InvalidInput, match="X: got"):
        av.check_safe_exploration(convolutional(), X=parts, layer="5")


def test_rounded_inputs_are_named(images):
    wide = np.random.default_rng(0).standard_normal((30, 36))
    result = av.check_safe_exploration(convolutional(), X=wide, layer="5")
    assert result.subject is Subject.NETWORK
    assert "rounded to the dtype of the parameters, torch.float32" in result.evidence[-1]


def test_a_graph_without_inputs_is_refused(proved, inputs):
    document = json.loads(proved.certificate.data["graph"].tobytes())
    nodes = [node for node in document["nodes"] if node["op"] in ("parameter", "constant")]
    changed = np.frombuffer(json.dumps({**document, "nodes": nodes, "outputs": [0]}).encode(), np.uint8)
    assert av.recheck(resealed(proved.certificate, {"graph": changed}), **inputs).verdict is Verdict.FAILS


def test_bad_input(images):
    with pytest.raises(InvalidInput, match="the inputs of the model"):
        av.check_safe_exploration(convolutional())
    with pytest.raises(InvalidInput, match="layer"):
        av.check_safe_exploration(np.eye(3), layer="5")
    with pytest.raises(InvalidInput, match="name of a submodule"):
        av.check_safe_exploration(convolutional(), X=images, layer="nine")
    equal = av.check_safe_exploration(convolutional(), X=images[[0, 1, 0]], layer="5")
    assert (equal.verdict, equal.subject) == (Verdict.FAILS, Subject.DATA)


def test_the_model_is_not_changed(images):
    net = convolutional().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    av.check_safe_exploration(net, X=images, layer="5")
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
