"""Recurrent layers written out: the fused functions of torch as the linear layers that they consist of.

A GRU, LSTM or Elman layer is one opaque call to autograd, and vmap does not take it. Written out, its input weights
are one linear layer over all time steps and its recurrent weights one linear layer used once a step: uses like any
other, for which there is a formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["RECURRENT"]

Step = Callable[[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]


def _gru(a: torch.Tensor, b: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    (h,) = state
    (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
    r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
    new = torch.tanh(an + r * bn)
    return (new + z * (h - new),)


def _lstm(a: torch.Tensor, b: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    i, f, g, o = (a + b).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _elman(gate: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    return lambda a, b, state: (gate(a + b),)


def _unrolled(step: Step, kept: int) -> Callable[..., Any]:
    """Make the written-out form of a fused function whose state is ``kept`` tensors; None for calls it does not know.

    Left alone: packed sequences (their third argument is no list of weights), dropout in train mode, and an LSTM with
    projections (more weights to a layer than it has gates and biases for).
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 9 or not isinstance(args[2], list | tuple):
            return None
        x, start, weights, biased, layers, dropout, train, both, batch_first = args
        states = tuple(start) if kept > 1 else (start,)
        directions = 2 if both else 1
        each = 4 if biased else 2
        if (train and dropout > 0) or x.ndim != 3 or len(weights) != each * layers * directions:
            return None
        sequence = x.transpose(0, 1) if batch_first else x
        last: list[tuple[torch.Tensor, ...]] = []
        for layer in range(layers):
            found = []
            for direction in range(directions):
                k = layer * directions + direction
                w_in, w_hidden, *b = weights[each * k : each * (k + 1)]
                b_in, b_hidden = b or (None, None)
                state = tuple(s[k] for s in states)
                gates = F.linear(sequence, w_in, b_in)
                outs = []
                for t in reversed(range(len(gates))) if direction else range(len(gates)):
                    state = step(gates[t], F.linear(state[0], w_hidden, b_hidden), state)
                    outs.append(state[0])
                found.append(torch.stack(outs[::-1] if direction else outs))
                last.append(state)
            sequence = torch.cat(found, -1)
        out = sequence.transpose(0, 1) if batch_first else sequence
        return (out, *(torch.stack([state[k] for state in last]) for k in range(kept)))

    return run


RECURRENT: dict[Any, Callable[..., Any]] = {
    torch.gru: _unrolled(_gru, 1),
    torch.lstm: _unrolled(_lstm, 2),
    torch.rnn_tanh: _unrolled(_elman(torch.tanh), 1),
    torch.rnn_relu: _unrolled(_elman(torch.relu), 1),
}
