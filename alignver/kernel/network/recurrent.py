"""The rules of recurrent layers, each time step a composition of matrix products and functions of entries."""

from __future__ import annotations

from typing import Any

import numpy as np

from alignver.kernel.failure import require
from alignver.kernel.network.compiler import Compiler, Real, Value, rule

Args = dict[str, Any]


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(c: Compiler, args: Args) -> Value:
    """Run the layers one after the other, each in one or two directions; the states are (layers directions, B, H)."""
    require(0.0 in (float(args["train"]), args["dropout"]), "a recurrent layer that draws random numbers")
    require(c.node.op.endswith(".input"), "a recurrent layer of packed sequences")
    kind, first, biases = c.node.base, args["batch_first"], args["has_biases"]
    x, hx, parameters = c.real(args["input"]), args["hx"], [c.real(part) for part in args["params"]]
    require(len(c.tape.shape(x)) == 3, "a recurrent layer of one sample without a batch axis")
    x = c.tape.permute(x, (1, 0, 2)) if first else x
    states = [c.real(part) for part in (hx if isinstance(hx, list) else [hx])]
    directions, layers = 2 if args["bidirectional"] else 1, args["num_layers"]
    each = len(parameters) // (directions * layers)
    require(each == (4 if biases else 2) and each * directions * layers == len(parameters), "projected states")
    ends: list[list[int]] = [[] for _ in states]
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            W = parameters[place * each : (place + 1) * each]
            start = [c.tape.move((state,), c.tape.indices(state)[place]) for state in states]
            sequence, last = _sequence(c, kind, x, start, W, direction == 1)
            outputs.append(sequence)
            for several, state in zip(ends, last, strict=True):
                several.append(state)
        x = outputs[0] if directions == 1 else _joined(c, outputs, -1)
    result = c.tape.permute(x, (1, 0, 2)) if first else x
    return [Real(result), *(Real(_stacked(c, several)) for several in ends)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(c: Compiler, args: Args) -> Value:
    """One time step."""
    hx = args["hx"] if isinstance(args["hx"], list) else [args["hx"]]
    sides = []
    for x, weight, bias in ((args["input"], "w_ih", "b_ih"), (hx[0], "w_hh", "b_hh")):
        step = c.tape.matmul(c.real(x), c.tape.permute(c.real(args[weight]), (1, 0)))
        sides.append(step if args.get(bias) is None else c.tape.sum(step, c.real(args[bias])))
    states = _CELLS[c.node.base.removesuffix("_cell")](c, *sides, [c.real(state) for state in hx])
    return [Real(state) for state in states] if len(states) > 1 else Real(states[0])


def _joined(c: Compiler, steps: list[int], axis: int) -> int:
    grids, start = [], 0
    for step in steps:
        grids.append(c.tape.indices(step) + start)
        start += c.tape.steps[step].size
    return c.tape.move(steps, np.concatenate(grids, axis=axis))


def _stacked(c: Compiler, steps: list[int]) -> int:
    return _joined(c, [c.tape.reshape(step, (1, *c.tape.shape(step))) for step in steps], 0)


def _sequence(c: Compiler, kind: str, x: int, start: list[int], W: list[int], backward: bool) -> tuple[int, list[int]]:
    """Return the states of all times, (T, B, H), and the last ones of a layer in one direction."""
    tape, state = c.tape, start
    U, V = (tape.permute(matrix, (1, 0)) for matrix in W[:2])
    inputs = tape.matmul(x, U)
    if len(W) == 4:
        inputs = tape.sum(inputs, W[2])
    times = range(tape.shape(x)[0])
    results: dict[int, int] = {}
    for t in reversed(times) if backward else times:
        a = tape.move((inputs,), tape.indices(inputs)[t])
        b = tape.matmul(state[0], V)
        if len(W) == 4:
            b = tape.sum(b, W[3])
        state = _CELLS[kind](c, a, b, state)
        results[t] = state[0]
    return _stacked(c, [results[t] for t in times]), state


def _gates(c: Compiler, step: int, count: int) -> list[int]:
    return [c.tape.move((step,), grid) for grid in np.split(c.tape.indices(step), count, axis=-1)]


def _lstm(c: Compiler, a: int, b: int, state: list[int]) -> list[int]:
    tape = c.tape
    i, f, g, o = _gates(c, tape.sum(a, b), 4)
    i, f, o = (tape.map(step, "sigmoid") for step in (i, f, o))
    cell = tape.sum(tape.product(f, state[1]), tape.product(i, tape.map(g, "tanh")))
    return [tape.product(o, tape.map(cell, "tanh")), cell]


def _gru(c: Compiler, a: int, b: int, state: list[int]) -> list[int]:
    tape = c.tape
    (ar, az, an), (br, bz, bn) = _gates(c, a, 3), _gates(c, b, 3)
    r, z = tape.map(tape.sum(ar, br), "sigmoid"), tape.map(tape.sum(az, bz), "sigmoid")
    n = tape.map(tape.sum(an, tape.product(r, bn)), "tanh")
    return [tape.sum(n, tape.product(z, tape.sum(state[0], n, signs=(1, -1))))]


def _simple(fn: str) -> Any:
    return lambda c, a, b, state: [c.tape.map(c.tape.sum(a, b), fn)]


_CELLS = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _simple("tanh"), "rnn_relu": _simple("relu")}
