"""A network in balls beside torch: outputs, and the Gram matrix of the Jacobian beside that of plain autograd."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.kernel.network import alignment, balls
from alignver.kernel.network.program import compiled, unpacked
from alignver.network.enclosures import EnclosedNetwork

BITS = 128


def floats(array: Any) -> Any:
    """The midpoints of an array of balls, all of which are finite."""
    flat = [float(ball.mid()) for ball in np.asarray(array, dtype=object).reshape(-1)]
    assert np.isfinite(flat).all()
    return np.array(flat).reshape(np.shape(array))


def network_of(model: nn.Module, x: torch.Tensor, rows: int | None = None) -> EnclosedNetwork:
    """The network of a model in float64."""
    double = copy.deepcopy(model).double().eval()
    return EnclosedNetwork.of(double, x.double() if x.is_floating_point() else x, rows)


def leaves_of(network: EnclosedNetwork) -> list[balls.Leaf]:
    """The gradients in the precision of the context."""
    return alignment.jacobian(network.traced.graph, network.parameters[0], network.x)


def plain_jacobian(model: nn.Module, x: torch.Tensor) -> Any:
    """The Jacobian by autograd in float64, one sample and one output at a time, output by output."""
    double = copy.deepcopy(model).double().eval()
    parameters = [p for p in double.parameters() if p.requires_grad]
    columns: list[list[Any]] = []
    for sample in x.double() if x.is_floating_point() else x:
        output = double(sample[None])[0].reshape(-1)
        rows = []
        for value in output:
            parts = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            pairs = zip(parts, parameters, strict=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs]))
        columns.append(rows)
    return torch.stack([row for output in zip(*columns, strict=True) for row in output]).numpy()


def compare(model: nn.Module, x: torch.Tensor, rows: int | None = 2) -> None:
    """Assert that values, J J^T and the columns of J agree with torch, in batches that do not divide the samples."""
    network = network_of(model, x, rows)
    x = x.double() if x.is_floating_point() else x
    expected = copy.deepcopy(model).double().eval()(x).detach().numpy()
    J = plain_jacobian(model, x)
    with balls.precision(BITS):
        rows = next(node.out[0][1] for node in network.traced.graph.nodes if node.op == "input")[0]
        batch = network.x[np.minimum(np.arange(rows), len(x) - 1)].reshape(rows, *x.shape[1:])
        program = compiled(network.traced.graph, unpacked(network.traced.graph, network.parameters[0]), batch)
        values = floats(balls.values(program)[program.output])
        found = leaves_of(network)
        M, columns = floats(balls.gram(found)), floats(balls.columns(found))
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    some = min(rows, len(x))
    assert np.abs(values[:some] - expected[:some]).max() <= 1e-9 * scale
    G = J @ J.T
    size = max(1e-3, float(np.abs(G).max()))
    assert M.shape == G.shape
    assert np.abs(M - G).max() <= 1e-9 * size
    assert np.abs(columns @ columns.T - G).max() <= 1e-9 * size
