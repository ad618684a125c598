"""What sizes say of the rank of a Jacobian, held against the rank itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import alignver as av
from alignver.network.row_rank_bound import row_rank_bound
from alignver.results import Rigor, Verdict

X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LINEAR = nn.Linear(3, 3)


class Reaching(nn.Module):
    """Uses a parameter of another module, of which its sizes tell nothing."""

    def __init__(self, other):
        super().__init__()
        self.own = nn.Linear(1, 3)
        self.other = [other]

    def forward(self, x):
        return self.own(x) + self.other[0].weight[:3, 0]


def reaching():
    first = nn.Linear(4, 8)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(8, 1), Reaching(first))


def hooked():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(1, 3))
    model[2].first = model[0]  # an attribute, which a copy of the modules has too
    model[2].register_forward_hook(lambda module, x, out: out * module.first.weight[0, 0])
    return model


NETWORKS = {
    "a bottleneck": lambda: nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 1), nn.Tanh(), nn.Linear(1, 3)),
    "one inside": lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 1)), nn.Linear(1, 6)),
    "few parameters": lambda: nn.Linear(4, 6, bias=False),
    "wide": lambda: nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 3)),
    "one unit": lambda: nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 1)),
    "shared": lambda: nn.Sequential(nn.Linear(4, 3), LINEAR, nn.Tanh(), LINEAR, nn.Tanh(), nn.Linear(3, 1), LINEAR2),
    "reaching": reaching,
    "hooked": hooked,
}
LINEAR2 = nn.Linear(1, 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_rank_is_never_above_the_bound(name):
    torch.manual_seed(1)
    model = NETWORKS[name]().double()
    J = av.jacobian(model, X)
    bound = row_rank_bound(model, X, len(J) // len(X))
    rank = int(torch.linalg.matrix_rank(J))
    assert rank <= bound.value <= min(J.shape)
    assert bool(bound.sentence) == (bound.value < len(J))
    if name in ("a bottleneck", "one inside", "few parameters"):
        assert bound.value < len(J)
    if name in ("reaching", "hooked"):
        assert bound.sentence == ""


def test_one_number_a_sample_does_not_make_rank_one():
    """Between inputs and one output, one number a sample still leaves rank n."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    few = X[:4]
    assert int(torch.linalg.matrix_rank(av.jacobian(model, few))) == 4
    assert row_rank_bound(model, few, 1).value == 4


def test_the_sentence_has_the_numbers():
    torch.manual_seed(0)
    narrow = NETWORKS["a bottleneck"]().double()
    result = av.check_alignment(narrow, X, torch.arange(9) % 3, loss="cross_entropy")
    assert (
        "121 parameters act only through one number per sample, the output of module '2', and 6 do not: "
        "rank J <= 15 < N = 27" in result.evidence
    )
    assert result.measured["rank_upper"] == 15
    line = av.check_alignment(nn.Linear(4, 3).double(), X, torch.arange(9) % 3, loss="cross_entropy", engine="gram")
    assert "15 parameters are fewer than the 27 entries of the outputs: J cannot have full row rank" in line.evidence
    assert "no proof from the Gram matrix of the layer factors: rank J <= 15" in line.evidence
    assert (line.verdict, line.rigor) == (Verdict.FAILS, Rigor.PROOF)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 5)).double().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    row_rank_bound(model, X, 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
