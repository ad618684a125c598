"""Laws of the Gram matrix, on networks drawn at random: tied, reused and stacked in any order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alignver.jacobians.gram import gram, plan
from alignver.jacobians.jacobian import jacobian
from tests.one_thread import single_thread

one_thread = pytest.fixture(autouse=True, scope="module")(single_thread)

WIDTH = 4
STEPS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "no bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "conv": lambda: nn.Conv1d(3, 3, 3, padding=1),
    "grouped": lambda: nn.Conv1d(3, 3, 2, padding="same", dilation=2, groups=3),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "group norm": lambda: nn.GroupNorm(1, 3),
    "batch norm": lambda: nn.BatchNorm1d(3).eval(),
    "gru": lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
    "scale": lambda: Scale(),
    "attention": lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
    "square": lambda: Square(),
}


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.randn(3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by


class Square(nn.Module):
    """A use that has no formula."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ntk,kl->ntl", x, self.weight**2)


class Drawn(nn.Module):
    """Modules in a given order over (n, 3, 4), each with tanh after it and some with a shortcut around it."""

    def __init__(self, kinds: list[str], order: list[tuple[int, bool]], outputs: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(STEPS[kind]() for kind in kinds)
        self.order = order
        self.head = nn.Linear(3 * WIDTH, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for k, shortcut in self.order:
            part = self.parts[k % len(self.parts)]
            if isinstance(part, nn.GRU):
                z = part(x)[0]
            elif isinstance(part, nn.MultiheadAttention):
                z = part(x, x, x, need_weights=False)[0]
            else:
                z = part(x)
            x = torch.tanh(z) + x if shortcut else torch.tanh(z)
        return self.head(x.flatten(1))


@st.composite
def drawn(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    kinds = draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=3))
    order = draw(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=4))
    outputs, n, seed = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(0, 2**16))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, x = Drawn(kinds, order, outputs), torch.randn(n, 3, WIDTH)
        weights = [p for part in model.parts for p in part.parameters() if p.shape == (WIDTH, WIDTH)]
        if len(weights) > 1 and draw(st.booleans()):  # tie whatever can be tied
            for part in model.parts:
                if isinstance(part, nn.Linear | Square):
                    part.weight = weights[0]
        for p in model.parameters():
            p.requires_grad_(draw(st.integers(0, 5)) > 0)
        model.head.bias.requires_grad_(True)
    return model, x


def close(computed: torch.Tensor, wanted: torch.Tensor, limit: float = 1e-12) -> bool:
    return float((computed.double() - wanted).norm()) <= limit * float(wanted.norm())


@given(drawn(), st.sampled_from([None, 1, 2, 3]))
def test_product_of_jacobians(case, chunk_size):
    model, x = case
    J = jacobian(model, x)
    M = gram(model, x, chunk_size=chunk_size)
    assert close(M, J @ J.T)
    assert torch.equal(M, M.T)
    assert close(gram(model, x, x.flip(0), chunk_size=chunk_size), J @ jacobian(model, x.flip(0)).T)


@given(drawn())
def test_blocks_of_a_larger_matrix(case):
    """The cross matrix is a block of the matrix of both sets of samples."""
    model, x = case
    first, second = x, -x[:2]
    n, n2 = len(first), len(second)
    whole = gram(model, torch.cat([first, second]))
    m = len(whole) // (n + n2)
    wanted = whole.view(m, n + n2, m, n + n2)[:, :n, :, n:].reshape(m * n, m * n2)
    cross = gram(model, first, second)
    assert float((cross - wanted).norm()) <= 1e-12 * float(whole.norm())
    assert float((gram(model, second, first).T - cross).norm()) <= 1e-12 * float(whole.norm())


@given(drawn())
def test_slots_add_up(case):
    """Freezing parameters splits the matrix into a sum."""
    model, x = case
    model.head.weight.requires_grad_(False)
    whole = gram(model, x, include_frozen=True)
    free = gram(model, x)
    flags = [p.requires_grad for p in model.parameters()]
    for p, flag in zip(model.parameters(), flags):
        p.requires_grad_(not flag)
    rest = gram(model, x)
    assert float((free + rest - whole).norm()) <= 1e-12 * float(whole.norm())


@given(drawn())
def test_the_plan_covers_every_slot(case):
    model, x = case
    planned = plan(model, x)
    assert len(planned.slots) == len({id(p) for p in model.parameters() if p.requires_grad})
    assert planned.flops >= 0
    assert planned.peak_bytes >= (len(x) * planned.m_y) ** 2 * 8
    assert planned.describe().count("\n") == 2 + len(planned.slots)
