"""The last two layers as the wrapper trains them: equations (16) to (18), with gates that can be frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from alignver.errors import InvalidInput

__all__ = ["GatedHead", "gate_slope"]


class GatedHead(nn.Module):
    r"""Outputs of gated hidden units, a hidden layer of its own for each output.

    .. math:: f(x)_j = W^{(H)}_{j*} \bigl( \tilde\sigma(R^{(j)\top} z) \circ (W^{(H-1,j)} z) \bigr), \qquad
              z = [\bar z^\top, 1]^\top

    with the logistic gate of slope s, :math:`\tilde\sigma(t) = 1 / (1 + e^{-s t})`. Until :meth:`freeze` the gates are
    the weights themselves, :math:`R^{(j)} = (W^{(H-1,j)})^\top`; afterwards they stay what they were, and the outputs
    are linear in the weights. Frozen gates are evaluated in float64, whatever the dtype of the rest.

    Parameters
    ----------
    features : int
        Entries of z without the constant: m_{H-1} - 1.
    width : int
        Hidden units m_H.
    outputs : int
        m_y.
    slope : float
        s, the paper's :math:`\varsigma'`.

    Attributes
    ----------
    hidden : (m_y, m_H, m_{H-1}) parameter
        :math:`W^{(H-1,j)}`, the bias as last column.
    output : (m_y, m_H) parameter
        :math:`W^{(H)}`.
    gates : (m_y, m_H, m_{H-1}) buffer
        Rows are the columns of :math:`R^{(j)}`; used once ``frozen``.
    frozen : () bool buffer
        Travels with the state dict, so that a loaded head is in its phase.

    References
    ----------
    Section 3.2.2 of Kawaguchi, Zhang, Deng (2022).

    Examples
    --------
    >>> head = GatedHead(3, 4, 2)
    >>> head(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    hidden: nn.Parameter
    output: nn.Parameter
    gates: torch.Tensor
    frozen: torch.Tensor

    def __init__(self, features: int, width: int, outputs: int, slope: float = 1.0) -> None:
        super().__init__()
        for name, value in (("features", features), ("width", width), ("outputs", outputs)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInput(name, repr(value), "an integer >= 1")
        self.slope = gate_slope(slope)
        first, last = nn.Linear(features, width), nn.Linear(width, outputs, bias=False)
        self.hidden = nn.Parameter(with_bias(first).expand(outputs, -1, -1).clone())
        self.output = nn.Parameter(last.weight.detach().clone())
        self.register_buffer("gates", torch.zeros_like(self.hidden))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))
        self._exploiting = False

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the outputs (n, m_y) of features (n, m_{H-1} - 1)."""
        return self.of_features(self.features(z))

    def features(self, z: torch.Tensor) -> torch.Tensor:
        """Append the constant neuron."""
        return torch.cat([z, z.new_ones((*z.shape[:-1], 1))], -1)

    def of_features(self, z: torch.Tensor) -> torch.Tensor:
        """Return the outputs for features with their constant, (n, m_{H-1})."""
        values = torch.einsum("nm,jhm->jnh", z, self.hidden)
        return torch.einsum("jnh,jh->nj", values * self.gate_values(z, values), self.output)

    def gate_values(self, z: torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
        """Return the gates' values, (m_y, n, m_H); ``values`` are the products of z with the weights, if known."""
        if self._exploiting:
            # Steep gates have large arguments, and float32 would blur which side of a gate a sample is on: proofs are
            # about the exact gates. MPS devices have no float64.
            dtype = z.dtype if z.device.type == "mps" else torch.float64
            values = torch.einsum("nm,jhm->jnh", z.to(dtype), self.gates.to(dtype))
            return torch.sigmoid(self.slope * values).to(z.dtype)
        if values is None:
            values = torch.einsum("nm,jhm->jnh", z, self.hidden)
        return torch.sigmoid(self.slope * values)

    @torch.no_grad()
    def freeze(self, gates: torch.Tensor | None = None) -> None:
        """Hold the gates at the present weights (line 10 of Algorithm 1), or at ``gates``."""
        self.gates.copy_(self.hidden if gates is None else gates)
        self.frozen.fill_(True)
        self._exploiting = True

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        # A Python bool beside the buffer: a branch on a tensor would wait for the device, and break torch.compile.
        self._exploiting = bool(self.frozen)

    def extra_repr(self) -> str:
        """Say the sizes and the phase."""
        outputs, width, features = self.hidden.shape
        phase = "frozen gates" if self._exploiting else "own gates"
        return f"features={features - 1}+1, width={width}, outputs={outputs}, slope={self.slope:g}, {phase}"


def with_bias(layer: nn.Linear) -> torch.Tensor:
    """Return the weights (out, in + 1) of a layer with its bias, or zeros, as last column."""
    weight = layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    return torch.cat([weight, bias[:, None]], 1)


def gate_slope(gate: Any) -> float:
    """Return the slope of a logistic gate: a positive number, or the sigmoid of torch, whose slope is 1.

    Raises
    ------
    InvalidInput
        Anything else: the theory asks for a gate that goes from 0 to 1, and the proofs are about the logistic one.

    Examples
    --------
    >>> gate_slope(torch.sigmoid), gate_slope(1000)
    (1.0, 1000.0)
    """
    if gate is torch.sigmoid or gate is torch.nn.functional.sigmoid or isinstance(gate, nn.Sigmoid):
        return 1.0
    if isinstance(gate, bool) or not isinstance(gate, int | float) or not 0.0 < float(gate) < float("inf"):
        need = "the slope of a logistic gate: a positive finite number, or torch.sigmoid"
        raise InvalidInput("gate", repr(gate), need)
    return float(gate)
