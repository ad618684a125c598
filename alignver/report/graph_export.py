r"""The graph of a certificate for other tools: an ONNX model, and its annotations and bounds as JSON.

``graph.onnx`` is the network in float64. ``bounds.json`` says what the kernel proves of each node: a range of its
entries for every theta and every input; its degree in S, for Assumption 1; and for a certificate with parameters and
inputs an enclosure in real arithmetic, :math:`\|v_i - \hat v_i\|_2 \le e_i` for each sample i of the first batch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from alignver import atomic, require
from alignver.errors import InvalidInput, saving
from alignver.kernel import Certificate
from alignver.kernel.certificate import describe, record
from alignver.kernel.failure import NotProved
from alignver.kernel.machine import require_ieee
from alignver.kernel.network import normwise
from alignver.kernel.network.analytic import walk
from alignver.kernel.network.compiler import Compiler, Real
from alignver.kernel.network.degrees import UNKNOWN, ZERO
from alignver.kernel.network.graph import Graph, parse
from alignver.kernel.network.program import unpacked
from alignver.kernel.network.tape import Program
from alignver.report.onnx_graph import onnx_model, require_onnx, value_name
from alignver.results import encode, plain

VERSION = 1
_MOST = 1 << 16
"""Entries of the largest node whose values are written."""


def export_graph(
    certificate: Certificate, folder: str | os.PathLike[str], *, parameters: Any = None, x: Any = None
) -> Path:
    """Write the graph of a certificate as ``graph.onnx`` and ``bounds.json``.

    Parameters
    ----------
    certificate : Certificate
        Of a claim about a graph. It is not verified here.
    folder : path
        Created if it does not exist; earlier files of these names are replaced.
    parameters : (1, p) float64, optional
        The input of the certificate by that name. Without it, the leaves are inputs of the ONNX model.
    x : (n, k) float64, optional
        The input by that name: with both, the bounds have enclosures.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InvalidInput
        The certificate has no graph, the inputs are others than its own, an operator has no rule for ONNX, or the
        folder cannot be written.
    MissingDependency
        Without onnx.

    Examples
    --------
    >>> import alignver, tempfile, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> proved = alignver.check_analytic(net, torch.zeros(2, 2)).certificate
    >>> export_graph(proved, tempfile.mkdtemp())  # doctest: +SKIP
    PosixPath('/tmp/...')
    """
    place = require.path("folder", folder)
    require_onnx()
    document = graph_bounds(certificate, parameters, x)
    graph = _graph(certificate)
    values = None if parameters is None else unpacked(graph, np.asarray(parameters)[0])
    facts = {
        "claim": certificate.claim,
        "method": certificate.method,
        "seal": certificate.seal,
        "bounds": "bounds.json",
    }
    model = onnx_model(graph, values, metadata={f"alignver.{key}": value for key, value in facts.items()})
    text = json.dumps(encode(plain(document)), indent=1, allow_nan=False)
    with saving("folder", place, "a folder that can be written"):
        place.mkdir(parents=True, exist_ok=True)
        for name, content in (("graph.onnx", model.SerializeToString()), ("bounds.json", text.encode("ascii"))):
            with atomic.writing(place / name) as stream:
                stream.write(content)
    return place


def graph_bounds(certificate: Certificate, parameters: Any = None, x: Any = None) -> dict[str, Any]:
    """Return what is proved about each node of a certificate's graph, as plain data.

    Parameters
    ----------
    certificate, parameters, x
        As for :func:`export_graph`.

    Returns
    -------
    dict
        As ``docs/network.md`` describes ``bounds.json``. Rigor: PROOF, about the network.

    Raises
    ------
    InvalidInput
        The certificate has no graph, or the inputs are others than its own.

    Examples
    --------
    >>> import alignver, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> proved = alignver.check_analytic(net, torch.zeros(2, 2)).certificate
    >>> tanh = graph_bounds(proved)["nodes"][6]
    >>> tanh["op"], tanh["range"]["low"], tanh["range"]["high"]
    ('aten.tanh.default', -1.0, 1.0)
    """
    graph = _graph(certificate)
    if (parameters is None) != (x is None):
        need = "both inputs, or none"
        raise InvalidInput("parameters" if parameters is None else "x", "None", need, "conflicting-arguments")
    for name, value in {} if x is None else {"parameters": parameters, "x": x}.items():
        array = np.ascontiguousarray(value, dtype=np.float64)
        if plain(record(array)) != dict(certificate.inputs.get(name, {})):
            raise InvalidInput(name, "another array", f"the {name} that this certificate is about")
    degrees = _degrees(certificate, graph)
    enclosures = None if x is None else _enclosures(graph, np.asarray(parameters)[0], np.asarray(x))
    nodes = []
    for k, (node, value) in enumerate(zip(graph.nodes, walk(graph)[0], strict=True)):
        dtype, shape = node.out[0]
        entry: dict[str, Any] = {"node": k, "value": value_name(k), "op": node.op, "module": node.module}
        entry |= {"dtype": dtype, "shape": list(shape), "depends_on_theta": value.depends}
        ends = value.range
        entry["range"] = {"low": ends.low, "high": ends.high, "low_open": ends.low_open, "high_open": ends.high_open}
        if node.op == "parameter":
            entry |= {key: node.args[key] for key in ("name", "leaf", "trainable")}
        if degrees is not None:
            entry["degree"] = degrees[k]
        if enclosures is not None:
            entry["enclosure"] = enclosures[k]
        nodes.append(entry)
    claim: dict[str, Any] = {"claim": certificate.claim, "method": certificate.method}
    claim |= {
        "statement": describe(certificate),
        "seal": certificate.seal,
        "version": certificate.version,
        "constants": dict(certificate.constants),
    }
    digest = hashlib.sha256(certificate.data["graph"].tobytes()).hexdigest()
    head = {"format": "alignver graph", "version": VERSION, "certificate": claim, "graph_sha256": digest}
    return {**head, "nodes": nodes, "outputs": [value_name(k) for k in graph.outputs]}


def _graph(certificate: Certificate) -> Graph:
    try:
        return parse(certificate.data["graph"])
    except (KeyError, NotProved) as error:
        raise InvalidInput("certificate", f"{certificate.claim}, without a graph", "one about a network") from error


def _degrees(certificate: Certificate, graph: Graph) -> list[Any] | None:
    """Return the degree of the first result of each node in S, ``"zero"`` or ``"none"``; None for another claim."""
    stored = certificate.data.get("degrees")
    if certificate.claim != "common-structure" or stored is None:
        return None
    starts = np.cumsum([0, *(len(node.out) for node in graph.nodes)])[:-1]
    words = {ZERO: "zero", UNKNOWN: "none"}
    return [words.get(p, p) for p in stored[starts].tolist()]


def _enclosures(graph: Graph, theta: Any, x: Any) -> list[dict[str, Any] | None]:
    """Return the enclosure of each node's result for the first batch; None for integers and several results."""
    require_ieee(threaded=True)
    shape = next(node.out[0][1] for node in graph.nodes if node.op == "input")
    batch = x[np.minimum(np.arange(shape[0]), len(x) - 1)].reshape(shape)
    try:
        compiler = Compiler(graph, unpacked(graph, theta))
        program = compiler.compiled(batch)
        steps = normwise.forward(Program(tuple(compiler.tape.steps), len(compiler.tape.steps) - 1, program.samples))
    except NotProved as failure:
        got = f"a graph that is not enclosed in float64 ({failure})"
        raise InvalidInput("certificate", got, "rules for its operators") from None
    enclosures: list[dict[str, Any] | None] = []
    for value in compiler.values:
        if not isinstance(value, Real) or value.masked is not None:
            enclosures.append(None)
            continue
        enclosed, radii = steps[value.step], np.atleast_1d(steps[value.step].error)
        centre, radius = enclosed.value.reshape(-1), float(radii.max())
        enclosures.append({
            "low": math.nextafter(float(centre.min(initial=math.inf)) - radius, -math.inf),
            "high": math.nextafter(float(centre.max(initial=-math.inf)) + radius, math.inf),
            "centre": centre.tolist() if centre.size <= _MOST else None,
            "radius": radii.tolist(),
        })  # fmt: skip
    return enclosures
