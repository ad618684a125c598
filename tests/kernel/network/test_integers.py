"""Integers of a graph beside torch: masks, positions and indices that are computed from the tokens of each sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alignver.kernel.failure import NotProved
from alignver.kernel.network import balls
from tests.kernel.network.compared import compare, leaves_of, network_of

TOKENS = torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0], [4, 4, 1, 0], [2, 3, 1, 4]])


class Of(nn.Module):
    """A function of tokens, a table of their vectors and a matrix."""

    def __init__(self, function):
        super().__init__()
        self.table, self.W, self.function = nn.Embedding(5, 3), nn.Parameter(torch.randn(6, 3)), function

    def forward(self, tokens):
        return self.function(tokens, self.table(tokens), self.W)


def rows(tokens):
    return torch.arange(len(tokens))


def packed(tokens, e, W):
    """Numbers and tokens in one array, as several inputs are packed."""
    return (tokens.double() * W[0, 0])[:, :1] + W[tokens.double().long() % 6].sum(1)


def added(tokens, e, W):
    """Numbers that each step uses three times: 3^50 ways to the tokens."""
    numbers = tokens.to(e.dtype)
    for _ in range(50):
        numbers = numbers + numbers - numbers
    return e.masked_fill((numbers > 1)[..., None], 0.5).sum(1)


PER_SAMPLE = {
    "the last token": lambda t, e, W: e[rows(t), (t != 0).sum(-1) - 1] @ W.T,
    "the last token by its position": lambda t, e, W: e[rows(t), (torch.arange(4) * (t != 0).int()).argmax(-1)] @ W.T,
    "positions by a cumulative sum": lambda t, e, W: W[(t.ne(0).cumsum(1) * t.ne(0)).long()].sum(1),
    "positions by an index": lambda t, e, W: W[torch.cumsum(t != 0, -1) % 2].sum(1),
    "masks that meet": lambda t, e, W: torch.where(((t != 0) & (t != 4))[..., None], e, 0.0).sum(1),
    "masks of which one": lambda t, e, W: e.masked_fill(~((t == 1) | (t == 4) ^ (t == 2))[..., None], 0.0).sum(1),
    "a causal mask and padding": lambda t, e, W: F.scaled_dot_product_attention(
        e @ W[:3], e, e, attn_mask=torch.ones(4, 4, dtype=torch.bool).tril() & (t != 0)[:, None]).sum(1),
    "a mask by indices": lambda t, e, W: e.masked_fill(
        (t != 0)[rows(t)[:, None], torch.arange(4)[None]][..., None], 0.5).sum(1) @ W.T,
    "selected from a mask": lambda t, e, W: e.masked_fill((t != 0)[:, [3, 2, 1, 0]][..., None], 0.5).sum(1),
    "quotients and remainders": lambda t, e, W: (W[(t - 3) % 4] + W[(t - 3) // 2 + 2] + W[(t - 2).abs().clamp(1, 3)] +
                                                 W[(t % -3 + 2).clamp_min(1).clamp_max(2)]).sum(1),
    "a sample without a token": lambda t, e, W: torch.where((t == 3).any(1, keepdim=True), e[:, 0], e[:, 1] @ W[:3]),
    "the largest token": lambda t, e, W: W[t.amax(1)] + W[t.amin(-1, keepdim=True)].sum(1),
    "first of equals": lambda t, e, W: W[t.argmax(1)] + W[t.argmin(1)],
    "gathered tokens": lambda t, e, W: W[t.gather(1, t % 4)].sum(1),
    "a number as an integer": packed,
    "a long sum of numbers": added,
    "indices of two axes in the middle": lambda t, e, W: torch.stack([e, -e], 1)[:, torch.tensor([1, 0, 1, 1]),
                                                                                torch.tensor([3, 0, 1, 1])].sum(1),
    "apart": lambda t, e, W: torch.stack([e, -e], 1)[rows(t), :, (t != 0).sum(-1) - 1].sum(1),
    "of a layout": lambda t, e, W: (e * (t != 0).to(e.dtype, copy=False)[..., None]).sum(1),
    "a mask of numbers": lambda t, e, W: e.masked_fill((1.0 - (t != 0).to(e.dtype) > 0)[..., None], 0.5).sum(1),
    "a mask of sums": lambda t, e, W: e.masked_fill((t.to(e.dtype) * 2.0 + t - 3 >= 4.5)[..., None], 0.5).sum(1),
    "equal numbers": lambda t, e, W: e.masked_fill(
        (t.double()[:, :, None] == t.double()[:, None]).sum(2)[..., None] > 1, 2.0).sum(1) @ W.T,
    "of the type of another": lambda t, e, W: W[(t != 0).type_as(t)].sum(1) + (t != 0).type_as(e).sum(1, keepdim=True),
    "in the shape of another": lambda t, e, W: e.reshape_as(W[:4] + e).sum(1) + e[:, 0].view_as(e[:, 1]),
    "a slice that is written": lambda t, e, W: torch.slice_scatter(e, 2 * e[:, 1:3] @ W[:3], 1, 0, 4, 2).sum(1),
    "a single number": lambda t, e, W: e.sum(1) * (W.sum() / W[0, 0] * W[1, 1]).tanh(),
}  # fmt: skip


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_integers_are_those_of_torch(name):
    torch.manual_seed(0)
    compare(Of(PER_SAMPLE[name]), TOKENS)


@pytest.mark.parametrize("value", [0.0, -0.0, 2.0, 2.75, -1.5, 2.0**53])
def test_casts_of_inputs_truncate(value):
    """An input is exact, so that its integer part is decided."""
    torch.manual_seed(0)
    net = nn.Linear(2, 1, dtype=torch.float64)
    x = torch.tensor([[value, 1.0], [1.25, -3.0]], dtype=torch.float64)
    compare(nn.Sequential(_Truncated(), net), x)


class _Truncated(nn.Module):
    def forward(self, x):
        return x.long().to(x.dtype) + x.bool().to(x.dtype)


JOINED = {
    "the last tokens of others": lambda t, e, W: e[rows(t).flip(0), (t != 0).sum(-1) - 1] @ W.T,
    "the lengths of others": lambda t, e, W: e[rows(t), (t != 0).sum(-1).flip(0) - 1] @ W.T,
    "a cumulative sum over the samples": lambda t, e, W: W[t.ne(0).long().cumsum(0)].sum(1),
    "a longest sample": lambda t, e, W: e.sum(1) * (t != 0).sum(1).amax(),
    "any sample": lambda t, e, W: torch.where((t == 3).any(0)[:, None], e, 0.0).sum(1),
    "the mask of the sample before": lambda t, e, W: e.masked_fill((t != 0)[rows(t) - 1][..., None], 0.0).sum(1),
    "tokens of the sample before": lambda t, e, W: W[t[rows(t) - 1]].sum(1) * e.sum(1),
    "gathered from others": lambda t, e, W: W[t.gather(0, (t % 4).flip(0))].sum(1) * e.sum(1),
}


@pytest.mark.parametrize("name", JOINED)
def test_samples_that_are_joined_are_refused(name, monkeypatch):
    for comparison in ("require_same_in_batches", "require_same_in_order"):  # they refuse such models as well
        monkeypatch.setattr(f"alignver.network.trace.{comparison}", lambda *_: None)
    torch.manual_seed(0)
    network = network_of(Of(JOINED[name]), TOKENS, 4)
    with balls.precision(64), pytest.raises(NotProved, match=r"sampl"):
        leaves_of(network)


REFUSED = {
    "a comparison of results": lambda t, e, W: torch.where(e > 0.1, e, 2 * e).sum(1),
    "a comparison of fractions": lambda t, e, W: e.masked_fill((t.double() * 0.1 + 0.2 > 0.3)[..., None], 0.0).sum(1),
    "a comparison of large numbers": lambda t, e, W: e.masked_fill(
        (t.double() + 2.0**53 > 2.0**53)[..., None], 0.0
    ).sum(1),
    "a comparison of large products": lambda t, e, W: e.masked_fill(
        (t.double() * 2.0**53 > 2.0**53)[..., None], 0.0
    ).sum(1),
    "a comparison of quotients": lambda t, e, W: e.masked_fill(((t.double() / (1 / 3)) > 3)[..., None], 0.0).sum(1),
    "a comparison of differences": lambda t, e, W: e.masked_fill(
        (2.0**53 - t.double() * 2.0**52 - 0.5 > 2.0**52)[..., None], 0.0
    ).sum(1),
    "a comparison of sums that cancel": lambda t, e, W: e.masked_fill(
        (t.double() + 2.0**53 - 2.0**53 > 0.5)[..., None], 0.0
    ).sum(1),
    "integers of a result": lambda t, e, W: W[(e @ W.T).long().abs() % 6].sum((1, 2)),
    "integers of a sum of inputs": lambda t, e, W: W[(t.double() + 0.5).long() % 6].sum(1),
    "integers of a parameter": lambda t, e, W: e.sum(1) * W.long().sum(),
    "products that wrap around": lambda t, e, W: W[((t + 2**32) * 2**32 % 7).abs() % 6].sum(1),
    "sums that wrap around": lambda t, e, W: W[((t + 2**52).repeat(1, 3072).sum(1)).abs() % 6],
    "places of a mask": lambda t, e, W: e.sum(1) + W[(t[:, :1] != 0)[0].nonzero()[0]],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_exact_is_refused(name):
    torch.manual_seed(0)
    with pytest.raises((NotProved, ValueError)), balls.precision(64):
        leaves_of(network_of(Of(REFUSED[name]), TOKENS, 4))
