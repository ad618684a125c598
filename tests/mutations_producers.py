"""What :mod:`tests.mutants` changes in the code that makes proofs: constants, terms and lists, each made too small."""

from __future__ import annotations

from collections.abc import Iterator

from tests.mutants import Mutant

_NEAR = {
    "proof/rounding.py": ("tests/proof/test_constants.py", "tests/proof/test_bounds.py"),
    **dict.fromkeys(
        [f"proof/{name}.py" for name in ("factored_gram", "exact", "decision")],
        ("tests/proof/test_constants_factored.py",),
    ),
}

# In each file: what is replaced and by what, each a mutant of its own. A number is a factor that enters at the #.
_CHANGES: dict[str, dict[str, list[str | float]]] = {
    "proof/rounding.py": {
        "return math.nextafter(x, math.inf)": ["return x"],
        "return math.nextafter(x, -math.inf)": ["return x"],
        "OMEGA = 2.0**-1022": ["OMEGA = 2.0**-1023"],
        "return #div_up(ku, _down(1.0 - ku))": [0.5, 0.01],
        "add_up(computed, mul_up(n, OMEGA)), sub_down(1.0, gamma(n))": [
            "add_up(computed, mul_up(n, OMEGA)), sub_down(1.0, gamma(n // 2))"
        ],
        "add_up(computed, mul_up(#n, OMEGA)), sub_down(1.0, gamma(n))": [0.5],
        "factor = div_up(1.0, sub_down(1.0, gamma(n)))": ["factor = div_up(1.0, sub_down(1.0, gamma(n // 2)))"],
        "np.nextafter(sums + mul_up(#n, OMEGA), np.inf)": [0.5],
        "return sqrt_up(sum_up(square_sums_up(A, 1)))": ["return sqrt_up(float(np.sum(square_sums_up(A, 1))))"],
        "sub_down(square, mul_up(#n, OMEGA))": [0.5],
        "add_up(1.0, gamma(n))": ["add_up(1.0, gamma(n // 2))"],
    },
    "proof/cholesky.py": {
        "g = gamma(n + 2)": ["g = gamma((n + 2) // 2)"],
        "g = #gamma(n + 2)": [0.01],
        "relative = mul_up(div_up(g, sub_down(1.0, g)), trace)": ["relative = mul_up(g, trace)"],
        "return add_up(relative, mul_up(8.0,": ["return add_up(relative, mul_up(4.0,"],
        "return add_up(#relative, mul_up(8.0,": [0.5],
        "add_up(float(n + 2), #largest), OMEGA": [0.5],
        "np.nextafter(np.diagonal(work) - shift, -np.inf)": ["np.diagonal(work) - shift"],
        "total = add_up(rump_shift(A.shape[0], trace, largest), max(error, 0.0), max(shift, 0.0))": [
            "total = add_up(max(error, 0.0), max(shift, 0.0))"
        ],
        "total = add_up(rump_shift(A.shape[0], trace, largest), #max(error, 0.0), max(shift, 0.0))": [0.5],
        "total = add_up(rump_shift(A.shape[0], trace, largest), max(error, 0.0), #max(shift, 0.0))": [0.5],
        "inflate = div_up(1.0, sub_down(1.0, gamma(d)))": ["inflate = 1.0"],
        "error = add_up(#mul_up(gamma(d), trace), underflow)": [0.5, 0.01],
        "backward = #rump_shift(": [0.5, 0.01],
        "return add_up(mul_up(2.0, add_up(error, backward)), mul_up(32.0 * U, trace))": [
            "return add_up(mul_up(1.0, add_up(error, backward)), mul_up(32.0 * U, trace))",
            "return add_up(mul_up(2.0, add_up(error, backward)), mul_up(16.0 * U, trace))",
        ],
        "return #add_up(mul_up(2.0, add_up(error, backward)), mul_up(32.0 * U, trace))": [0.01],
        "add_up(margin, guess)": ["guess"],
        "add_up(margin, shift)": ["shift"],
        "s_min = scale_down(smallest, -int(exponents.max()))": ["s_min = scale_down(smallest, 0)"],
        "not sqrt_down(shift) > #radius": [0.5],
        "mul_up(float(A.shape[0]), float(A.shape[1]), OMEGA)": ["mul_up(float(A.shape[0]), OMEGA)"],
    },
    "proof/right_inverse.py": {
        "_SLACK = 1.0 + 2.0**-40": ["_SLACK = 1.0 + 2.0**-41"],
        "// 2\n    grid = 2.0**bits": ["// 2 + 1\n    grid = 2.0**bits"],
        "bound = #U * (norms(first) + 3.0 * norms(rest) + norms(residual)) + norms(residual)": [0.5],
        "bound = U * (norms(first) + 3.0 * norms(rest) + norms(residual)) + norms(residual)": [
            "bound = U * (3.0 * norms(rest) + norms(residual)) + norms(residual)",
            "bound = U * (norms(first) + norms(rest) + norms(residual)) + norms(residual)",
            "bound = U * (norms(first) + 3.0 * norms(rest) + norms(residual))",
        ],
        "#frobenius_up(tail) * norms(unit) +": [0.5],
        "+ frobenius_up(head) * norms(unit_tail)": [""],
        "#gamma(d + 2) * products": [0.5, 0.01],
        "slack = add_up(1.0, gamma(max(X.shape) + 2))": ["slack = 1.0"],
        "bound = #mul_up(sqrt_up(mul_up(sides, slack, slack, slack)), _SLACK)": [0.5],
        "add_up(epsilon, mul_up(#radius, size)) < 1.0": [0.5],
        "div_down(max(0.0, sub_down(1.0, epsilon)), size), scaled.lost)": ["div_down(1.0, size), scaled.lost)"],
        "div_down(max(0.0, sub_down(1.0, epsilon)), size), #scaled.lost)": [0.5],
        "sub_down(1.0, scale_up(epsilon, spread))": ["sub_down(1.0, epsilon)"],
        "scale_up(scaled.lost, -int(exponents.min()))": ["scaled.lost"],
    },
    "proof/residual.py": {
        "mul_up(#gamma(d + 2), add_up(": [0.5, 0.01],
        "sub_down(norm_down(computed), error)": ["norm_down(computed)"],
        "mul_up(#gamma(n), size, norm_up(computed))": [0.5],
        "mul_up(#size, error),": [0.5],
        "moved = mul_up(#delta, beta_size)": [0.5],
        "mul_up(delta, longest), ": [""],
        "mul_up(#add_up(size, delta), moved)": [0.5],
        "sub_down(s_min, delta))": ["s_min)"],
    },
    "proof/factored_gram.py": {
        "return a + b + 1, 1": ["return (a + b + 1) // 2, 1"],
        "return a + b + T + WIDTH + 1, max(T, groups)": [
            "return a + b + T + 1, max(T, groups)",
            "return a + b + T + WIDTH + 1, 1",
        ],
        "(1.0 + (T + 8) * 2.0 * U) + T * OMEGA": ["(1.0 + (T + 8) * U) + T * OMEGA", "(1.0 + (T + 8) * 2.0 * U)"],
        "for _, additions in counts) + 4": ["for _, additions in counts)"],
        "float(terms) ** 4, OMEGA, 2.0**802": ["float(terms) ** 4, OMEGA, 2.0**801"],
        "lost = mul_up(#float(N), float(sum(": [0.5],
        "error = add_up(mul_up(#gamma(terms), trace, 1.0 + 2.0**-10), tiny)": [0.5, 0.01],
        "error = add_up(mul_up(gamma(terms), trace, 1.0 + 2.0**-10), tiny)": [
            "error = add_up(mul_up(gamma(terms), trace), tiny)"
        ],
        "margin = #safety_margin(": [0.5, 0.01],
        "relative, largest = mul_up(#gamma(terms), 1.0 + 2.0**-10)": [0.5],
        "sub_down(sqrt_down(shift), gram.moved)": ["sqrt_down(shift)"],
        "not floor > mul_up(#scale_up(delta, top)": [0.5],
        "mul_up(#gamma(T + 3), norm_up(size))": [0.5, 0.01],
    },
    "proof/exact.py": {
        "width = 0.5 * math.log2": ["width = 0.25 * math.log2"],
        "[:size])) + 1": ["[:size]))"],
        "needed = matrix.minor_bits(rank + 1) + 1": [
            "needed = matrix.minor_bits(rank) + 1",
            "needed = matrix.minor_bits(rank + 1) // 2",
        ],
        "gathered += prime.bit_length() - 1": ["gathered += 2 * prime.bit_length() - 2"],
    },
    "proof/decision.py": {
        "sqrt_up(mul_up(rows, columns))": ["sqrt_up(mul_up(0.25, rows, columns))"],
        "min(#frobenius_up(R),": [0.5],
        "return mul_up(#self.entrywise, sqrt_up(": [0.5],
        "np.nextafter(np.ldexp(radius, exponents[:, None]), np.inf)": ["np.ldexp(radius, exponents[:, None])"],
        "top = int(exponents.max())": ["top = int(exponents.min())"],
    },
    "features/products.py": {
        "GATE_ERROR = 2.0**-45": ["GATE_ERROR = 2.0**-46"],
        "GATE_ERROR = #2.0**-45": [0.01],
        "GATE_UNDERFLOW = 2.0**-1000": ["GATE_UNDERFLOW = 2.0**-1001"],
        "mul_up(#gamma(m), longest_row, longest_gate)": [0.5, 0.01],
        "mul_up(#delta, longest_gate))": [0.5],
        "return add_up(mul_up(2.0, argument)": ["return add_up(mul_up(1.0, argument)"],
        "mul_up(GATE_ERROR, add_up(1.0, mul_up(2.0, argument)))": ["0.0"],
        "mul_up(#gamma(m + T.shape[1] + 2), trace)": [0.5, 0.01],
        "OMEGA, 2.0**450, add_up(1.0, float(squares.max()))": ["OMEGA, 2.0**449, add_up(1.0, float(squares.max()))"],
        "mul_up(1.001, relative, sqrt_up(trace))": [
            "mul_up(0.5, relative, sqrt_up(trace))",
            "mul_up(0.01, relative, sqrt_up(trace))",
        ],
        "mul_up(1.002, delta,": ["mul_up(0.501, delta,"],
        "relative = add_up(relative, 2.0**-52)": ["pass"],
        "GATE_UNDERFLOW, 2.0**401, heaviest,": ["GATE_UNDERFLOW, 2.0**400, heaviest,"],
    },
    "features/cholesky.py": {
        "depth = min(2 * min(tile, n) + -(-n // tile) + 3, n + 2)": [
            "depth = min(2 * min(tile, n) + -(-n // tile) + 3, n + 2) // 4",
            "depth = min(min(tile, n) + -(-n // tile) + 3, n + 2)",
            "depth = min(2 * min(tile, n) + 3, n + 2)",
            "depth = min(2 * min(tile, n) + -(-n // tile), n + 2)",
        ],
        "underflow = mul_up(8.0,": ["underflow = mul_up(4.0,"],
        "margin = add_up(mul_up(2.0, add_up(gram.error, backward)), mul_up(32.0 * U, trace))": [
            "margin = add_up(mul_up(1.0, add_up(gram.error, backward)), mul_up(32.0 * U, trace))",
            "margin = add_up(mul_up(2.0, 0.5 * gram.error, backward), mul_up(32.0 * U, trace))",
            "margin = add_up(mul_up(2.0, add_up(gram.error, backward)), mul_up(16.0 * U, trace))",
        ],
        "margin = #add_up(mul_up(2.0, add_up(gram.error, backward)), mul_up(32.0 * U, trace))": [0.01],
        "moved = add_up(#gram.moved, gram.slack)": [0.5],
        "moved = add_up(gram.moved, gram.slack)": ["moved = gram.moved"],
        "sub_down(sqrt_down(shift), moved)": ["sqrt_down(shift)"],
        "total = add_up(margin, shift)": ["total = shift"],
    },
    "features/tiles.py": {
        "np.nextafter(diagonal - total, -np.inf)": ["diagonal - total"],
    },
    "features/rows.py": {
        "mul_up(#gamma(m), longest, size)": [0.5, 0.01],
    },
    "features/block_prover.py": {
        "sub_down(min(sides, default=0.0), #self.error)": [0.5],
        "gaps > 4.0 * self.error": ["gaps > 2.0 * self.error"],
        "mul_up(#delta, sqrt_up(float(Z.shape[0])))": [0.5],
        "mul_up(delta, sqrt_up(float(Z.shape[0])))": ["delta"],
    },
    "features/staircase.py": {
        "base = 0.5 * floor if": ["base = floor if"],
        "spill = mul_up(#sqrt_up(float(width)), size)": [0.5],
        "size = add_up(size, mul_up(delta, sqrt_up(float(rows.n))))": ["size = size"],
        "mul_down(mul_down(c, margin), 1.4426)": ["mul_down(mul_down(c, margin), 1.4434)"],
        "s_min = _ROOM * max(0.0, sub_down(base, lost))": ["s_min = _ROOM * base"],
        "error = add_up(error, mul_up(#delta, norm_up(v)))": [0.5],
        "return add_up(4.0 * float(np.abs(values).max()), 2.0**-400)": [
            "return add_up(2.0 * float(np.abs(values).max()), 2.0**-400)"
        ],
        "norm = add_up(norm, mul_up(#delta,": [0.5],
        "np.arange(len(blocks), 0, -1.0)": ["np.ones(len(blocks))"],
    },
    "theory/enclosure.py": {
        "argument = #gamma(m) * sizes": [0.5, 0.01],
        "rho = (4.0 * argument * (1.0 - gates + 2.0**-44) + _GATE) * ROOM": [
            "rho = (2.0 * argument * (1.0 - gates + 2.0**-44) + _GATE) * ROOM"
        ],
        "rho = (4.0 * argument * (1.0 - gates + 2.0**-44) + #_GATE) * ROOM": [0.01],
        "slack = #gamma(m) * sizes": [0.5, 0.01],
        "move = (rho * gates + GATE_UNDERFLOW)": ["move = (rho * gates)"],
        "(gates * (1.0 + rho) + GATE_UNDERFLOW) * slack": ["(gates * (1.0 + rho)) * slack"],
        "rounding = #gamma(h + 2) *": [0.5, 0.01],
        "underflow = 3.0 * h * OMEGA * (1.0 + np.abs(product).max(axis=1) + weights.max())": [
            "underflow = 1.5 * h * OMEGA * (1.0 + np.abs(product).max(axis=1) + weights.max())",
            "underflow = 3.0 * h * OMEGA * (1.0 + weights.max())",
            "underflow = 3.0 * h * OMEGA * (1.0 + np.abs(product).max(axis=1))",
        ],
        "radius = #((move + rounding) @ weights)": [0.5, 0.01],
        "4.0 * self.radius + 2.0**-37 * self.size": [
            "2.0 * self.radius + 2.0**-37 * self.size",
            "4.0 * self.radius + 2.0**-38 * self.size",
        ],
        "fine = 1.0 + (f.shape[1] + 8) * 2.0**-52": ["fine = 1.0 + (f.shape[1] + 8) * 2.0**-53"],
        "above, below = gap + (#r +": [0.5],
        "np.nextafter(t + #r, np.inf)": [0.5],
        "np.nextafter(t - #r, -np.inf)": [0.5],
        "spread = f[:, k] - right, (r[:, k] + #rest)": [0.5],
        "_SOFTPLUS = 2.0**-43": ["_SOFTPLUS = 2.0**-44"],
        "_SOFTPLUS = #2.0**-43": [0.01],
        "(1.0 + 2.0 * _SOFTPLUS) + 4.0 * GATE_UNDERFLOW": ["(1.0 + 2.0 * _SOFTPLUS) + 2.0 * GATE_UNDERFLOW"],
        "(1.0 - 2.0 * _SOFTPLUS) - 4.0 * GATE_UNDERFLOW": ["(1.0 - 2.0 * _SOFTPLUS) - 2.0 * GATE_UNDERFLOW"],
        "bound * (1.0 + 2.0**-51)": ["bound"],
        "bound * (1.0 - 2.0**-51)": ["bound"],
    },
    "theory/smoothness.py": {
        "relative = add_up(#gate_matrix_error(": [0.5],
        "room = mul_up(add_up(1.0, mul_up(1.01, relative)), add_up(1.0, mul_up(1.01, relative)))": [
            "room = add_up(1.0, mul_up(1.01, relative))",
            "room = 1.0",
        ],
        "G, inner = gram(Z, T), m + h + 2": ["G, inner = gram(Z, T), (m + h + 2) // 2"],
        "G, inner = A.T @ A, n + 2": ["G, inner = A.T @ A, (n + 2) // 2"],
        "mul_up(#gamma(inner), frobenius)": [0.01],
        "mul_up(#gamma(n + 4), frobenius)": [0.5],
        "error=add_up(error, mul_up(2.0**-51, upper))": ["error=error", "error=mul_up(2.0**-51, upper)"],
        "bound = mul_up(#constant, sum_up(lengths": [0.5],
        "share = mul_up(#n / size,": [0.5],
        "mul_up(#1.01, relative, sqrt_up": [0.5],
    },
}

# What nobody has to notice: file, text, what it becomes, and the proof.
_HARMLESS = [
    (
        "proof/cholesky.py",
        "error = add_up(mul_up(gamma(d), trace), underflow)",
        "error = mul_up(gamma(d), trace)",
        "rows lie between 2^-200 and 2^200, so underflow is below 2^-500 of the trace, and 32 u of it are to spare",
    ),
    (
        "proof/right_inverse.py",
        "underflow = mul_up(float(n), float(8 * d), OMEGA)",
        "underflow = 0.0",
        "the norm of the residual is never counted below the root of OMEGA: more, while 8 n d is below 2^500",
    ),
    (
        "proof/right_inverse.py",
        "add_up(size, mul_up(float(X.size), OMEGA))",
        "size",
        "columns of X and powers exceed 2^-400, so u of the norm is above 2^-900, and one rounding is to spare",
    ),
    (
        "proof/residual.py",
        ", mul_up(float(n), float(d + 2), OMEGA)\n",
        "\n",
        "gamma has u ||y|| to spare, and ||y|| is never counted below the root of OMEGA: that is above 2^-570",
    ),
    (
        "proof/residual.py",
        "        mul_up(float(d), float(n), OMEGA),\n",
        "",
        "the norm of the gradient is counted with a rounding, and an OMEGA under the root, to spare: above 2^-570",
    ),
    (
        "proof/residual.py",
        "delta = mul_up(2.0, scale_up(lost, max(0, int(full.exponents.max()))))",
        "delta = 0.0",
        "columns and y are scaled to 1 and s_min is above 2^-60: below 2^-800, and gamma has u ||y|| to spare",
    ),
    (
        "proof/factored_gram.py",
        "norm_up(size)), underflow)",
        "norm_up(size)))",
        "2^400 times as much is added beside it, which is rounded up by more",
    ),
    (
        "features/products.py",
        "mul_up(float(m), OMEGA), mul_up(delta",
        "mul_up(delta",
        "GATE_ERROR is 256 u where 190 u are derived, and m OMEGA is far below u",
    ),
    (
        "features/rows.py",
        "add_up(mul_up(gamma(m), longest, size), mul_up(float(m), OMEGA))",
        "mul_up(gamma(m), longest, size)",
        "lengths have u, or an OMEGA under the root, to spare: gamma times that is above 2^300 m OMEGA",
    ),
    (
        "theory/enclosure.py",
        "* _lengths(R, 0) + m * OMEGA",
        "* _lengths(R, 0)",
        "lengths are never counted below the root of OMEGA: gamma times one is above 2^300 m OMEGA, and ROOM pays",
    ),
    (
        "theory/enclosure.py",
        "* _lengths(theta, 1) + m * OMEGA",
        "* _lengths(theta, 1)",
        "lengths are never counted below the root of OMEGA: gamma times one is above 2^300 m OMEGA, and ROOM pays",
    ),
]


def _near(file: str) -> tuple[str, ...]:
    return _NEAR.get(file, (f"tests/{file.split('/')[0]}/test_constants.py",))


def _listed() -> Iterator[Mutant]:
    for file, changes in _CHANGES.items():
        for marked, replacements in changes.items():
            for new in replacements:
                changed = new if isinstance(new, str) else marked.replace("#", f"{new} * ")
                yield Mutant(f"alignver/{file}", marked.replace("#", ""), changed, _near(file))
    for file, old, new, why in _HARMLESS:
        yield Mutant(f"alignver/{file}", old, new, _near(file), why)


PRODUCERS = list(_listed())
