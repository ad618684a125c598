"""The graph of a model as a table: a row for each module, with shapes, degrees in S, analyticity and parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from alignver.errors import printable
from alignver.kernel.network import degrees
from alignver.kernel.network.analytic import walk
from alignver.kernel.network.graph import Node
from alignver.network.trace import NetworkGraph

_HEAD = ("module", "operators", "output", "parameters", "degree", "analytic")
_WIDEST = 44


@dataclasses.dataclass(frozen=True)
class ModuleRow:
    """Consecutive operators of one module.

    Attributes
    ----------
    module : str
        Its path; empty for the model itself.
    operators : str
        Their names, in order, repetitions left out.
    shape : tuple of int
        Of the last result.
    parameters : int
        Entries of parameters that these operators read.
    degree : str
        Of the last result in S: 0, 1, ..., "any" for zero, "none".
    analytic : str
        "yes", or the operators of which it is not proved; "constant" where no parameter enters.
    """

    module: str
    operators: str
    shape: tuple[int, ...]
    parameters: int
    degree: str
    analytic: str


def module_rows(traced: NetworkGraph, S: Sequence[str] = ()) -> list[ModuleRow]:
    """Return the rows in the order of evaluation; S are parameters by name.

    Examples
    --------
    >>> import torch
    >>> from alignver.network.trace import trace_model
    >>> traced = trace_model(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()), torch.ones(5, 2))
    >>> module_rows(traced)[1].operators
    'tanh'
    """
    graph = traced.graph
    annotation = degrees.degrees(graph, degrees.subset(graph, S))
    values, barriers = walk(graph)
    unproved = {barrier.node for barrier in barriers}
    groups: list[list[int]] = []
    for index, node in enumerate(graph.nodes):
        if node.op in ("parameter", "constant", "input"):
            continue
        same = bool(groups) and graph.nodes[groups[-1][-1]].module == node.module
        groups = [*groups[:-1], [*groups[-1], index]] if same else [*groups, [index]]
    rows = []
    for group in groups:
        nodes = [graph.nodes[index] for index in group]
        leaves = {k for node in nodes for k in node.refs() if graph.nodes[k].op == "parameter"}
        bent = dict.fromkeys(_name(graph.nodes[index]) for index in group if index in unproved)
        depends = any(values[index].depends for index in group)
        rows.append(
            ModuleRow(
                nodes[0].module,
                ", ".join(dict.fromkeys(_name(node) for node in nodes)),
                nodes[-1].out[0][1],
                sum(_entries(graph.nodes[k]) for k in leaves),
                {degrees.ZERO: "any", degrees.UNKNOWN: "none"}.get(p := annotation[group[-1]][0], str(p)),
                "not proved: " + ", ".join(bent) if bent else "yes" if depends else "constant",
            )
        )
    return rows


def _name(node: Node) -> str:
    return node.base or node.op


def _entries(node: Node) -> int:
    count = 1
    for size in node.out[0][1]:
        count *= size
    return count


def table(rows: Sequence[ModuleRow]) -> str:
    """Return the rows as text, long names shortened."""
    cells: list[tuple[Any, ...]] = [_HEAD]
    for row in rows:
        shape = " x ".join(map(str, row.shape)) or "number"
        cells.append((row.module or "(model)", row.operators, shape, f"{row.parameters:,}", row.degree, row.analytic))
    shown = [[_short(printable(str(cell))) for cell in line] for line in cells]
    widths = [max(len(line[k]) for line in shown) for k in range(len(_HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in shown)


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
