"""Graphs of PyTorch Geometric as samples: a model of batches of graphs, one output row a graph, takes their numbers.

Graphs have different sizes, so that they form no array. The adapted model holds them and takes their numbers, (n, 1);
equal graphs have one number, that of the first of them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.network.inputs import dtype_name

__all__ = ["GraphBatches", "graphs_in", "numbers_of", "targets_of"]

_LIBRARY = "torch_geometric"


def _is_graph(value: Any) -> bool:
    return type(value).__module__.startswith(_LIBRARY) and hasattr(value, "edge_index") and hasattr(value, "keys")


def graphs_in(X: Any) -> list[Any] | None:
    """Return the graphs of a batch, a list, a dataset or a loader, in their order; None for other inputs."""
    if _is_graph(X):
        return list(X.to_data_list()) if hasattr(X, "to_data_list") else [X]
    source = getattr(X, "dataset", X)
    try:
        first = source[0]
    except Exception:  # what is no sequence can raise anything
        return None
    if not _is_graph(first):
        return None
    if source is not X:  # a loader: its own order
        return [graph for batch in X for graph in graphs_in(batch) or []]
    return [source[k] for k in range(len(source))]


def numbers_of(graphs: Sequence[Any]) -> torch.Tensor:
    """Return a number for each graph, (n, 1): that of the first one with the same tensors.

    Raises
    ------
    InvalidInput
        Entries that are not finite.
    """
    numbers: list[int] = []
    for k, graph in enumerate(graphs):
        for key, value in graph.to_dict().items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InvalidInput("X", f"NaN or Inf in {key!r} of graph {k}", "finite entries", "not-finite")
        same = (j for j in dict.fromkeys(numbers) if _equal(graphs[j], graph))
        numbers.append(next(same, k))
    return torch.tensor(numbers, dtype=torch.int64)[:, None]


def _equal(first: Any, second: Any) -> bool:
    """Whether two graphs have the same entries, but for their targets."""
    one, other = first.to_dict(), second.to_dict()
    keys = (one.keys() | other.keys()) - {"y"}
    return all(key in one and key in other and _same(one[key], other[key]) for key in keys)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


class GraphBatches:
    """Calls a model on batches of the graphs with given numbers.

    A forward pass with several arguments gets the tensors of the batch that have their names: ``x``, ``edge_index``,
    ``batch``; one with a single argument gets the batch.
    """

    def __init__(self, graphs: Sequence[Any], model: nn.Module) -> None:
        self.graphs = list(graphs)
        self.join = importlib.import_module(f"{_LIBRARY}.data").Batch.from_data_list
        whole = self.join(self.graphs)
        names = [
            name
            for name, parameter in inspect.signature(model.forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        self.names = [name for name in names if name in whole] if len(names) > 1 else []

    def __call__(self, model: nn.Module, numbers: torch.Tensor, **extra: Any) -> Any:
        """Run a model on the batch of some graphs."""
        parameter = next(model.parameters())
        batch = self.join([self.graphs[int(k)] for k in numbers.reshape(-1).tolist()]).to(parameter.device)
        for key, value in batch.to_dict().items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != parameter.dtype:
                batch[key] = value.to(parameter.dtype)
        if not self.names:
            return model(batch, **extra)
        return model(**{name: batch[name] for name in self.names}, **extra)


def targets_of(graphs: Sequence[Any]) -> torch.Tensor | None:
    """Return the targets that the graphs hold, one row a graph, or None."""
    targets = [graph.y for graph in graphs if isinstance(getattr(graph, "y", None), torch.Tensor)]
    if len(targets) < len(graphs):
        return None
    kinds = sorted({f"{y.numel()} of {dtype_name(y.dtype)}" for y in targets})
    if len(kinds) > 1:
        raise InvalidInput("Y", f"targets of {' and '.join(kinds[:3])}", "one row of targets a graph", "wrong-shape")
    rows = torch.stack([y.reshape(-1) for y in targets])
    return rows[:, 0] if rows.shape[1] == 1 else rows
