"""Changes to the kernel besides its comparisons: every constant of a bound, every term, every list, every question."""

from __future__ import annotations

from tests.mutants import Mutant, nearby

__all__ = ["HARMLESS_COMPARISONS", "KERNEL"]


def _mutants(name: str, *changes: tuple[str, str] | tuple[str, str, str]) -> list[Mutant]:
    return [Mutant(f"alignver/kernel/{name}.py", old, new, nearby(name), *why) for old, new, *why in changes]


_UNDERFLOW = (
    "gamma_k is k^2 u^2 more than what k roundings can do, of a sum of squares of at least 2^-604: all that may underflow "
    "is less"
)


def _on_graphs(name: str, *changes: tuple[str, str]) -> list[Mutant]:
    file = f"alignver/kernel/network/{name}.py"
    return [Mutant(file, old, new, nearby("network")) for old, new in changes]


_OF_FEATURES = ("tests/network/test_enclosed_features.py",)

KERNEL: list[Mutant] = [
    *(
        Mutant("alignver/kernel/network/exploration.py", old, new, _OF_FEATURES)
        for old, new in (
            ("self._same = dtype in FLOATS", "self._same = True"),
            ("(start, start + rows), len(self._x) - 1)", "(rows), len(self._x) - 1)"),
            ("output.error[:count]", "0.0 * output.error[:count]"),
            ('require(constants["add_constant"] is True,', "require(True,"),
            ("require(float(np.concatenate(errors).max()) <= delta,", "require(delta >= 0,"),
            ("Rows(Z, True)", "Rows(np.zeros_like(Z), True)"),
        )
_ENCLOSED = "property_tests/kernel/test_laws_of_enclosures.py"
_NETWORKS = "tests/kernel/network/"


def _enclosing(name: str, *changes: tuple[str, str, str]) -> list[Mutant]:
    file = f"alignver/kernel/network/{name}.py"
    return [Mutant(file, old, new, (test,)) for old, new, test in changes]


_LAYERS = f"{_NETWORKS}test_architectures.py::test_layers_are_those_of_torch"
_FORGED = f"{_NETWORKS}test_forgeries.py::test_forged_"

KERNEL: list[Mutant] = [
    *_enclosing(
        "balls",
        ("index if self.place is None else index[self.place]", "index", f"{_LAYERS}[tied, transposed by linear]"),
        ("return dense if place is None else", "return dense if True else", f"{_LAYERS}[tied, transposed by linear]"),
        ('require(entry.is_finite(), "an', 'require(True, "an', f"{_NETWORKS}test_architectures.py"),
        ("require(all(slope is not None for", "require(True or all(slope is not None for", f"{_NETWORKS}test_architectures.py"),
        ("g if sign > 0 else -g", "g", _ENCLOSED),
        ("step.owner.astype(np.int64) * total + index", "index", _ENCLOSED),
    ),
    *_enclosing(
        "tape",
        ('(samples == mine)).all()), "an operation joins', '(samples >= -1)).all()), "an operation joins', f"{_NETWORKS}test_architectures.py"),
        ("(grid == grid[:, :1]).all()", "(grid == grid).all()", f"{_NETWORKS}test_architectures.py"),
        ("require(math.prod(shape) <= _MOST,", "require(True,", f"{_FORGED}graphs[a leaf of 10^12 numbers]"),
        ("float(number) == number", "True", f"{_FORGED}arguments[an integer beyond floats]"),
    ),
    *_enclosing(
        "compiler",
        ("self.unread = set(values) - _CONVENTIONS", "self.unread = set[str]()", f"{_FORGED}graphs[an unknown argument]"),
        ('require(whole, f"{node.args', 'require(True, f"{node.args', f"{_NETWORKS}test_architectures.py::test_two_parameters_on_one_storage_are_refused"),
        ("floating == (dtype in FLOATS)", "True", f"{_FORGED}graphs[another dtype]"),
    ),
    *_enclosing(
        "operations",
        ("(-rows if negative else 0)", "-rows", f"{_NETWORKS}test_forgeries.py::test_forged_tokens"),
        ("signs=(1, sign)", "signs=(1, 1)", _ENCLOSED),
    ),
    *_enclosing(
        "normalization",
        ("np.array_equal(mine, c.tape.owner(scores.step))", "True", f"{_NETWORKS}test_architectures.py::test_masks_of_other_samples_are_refused"),
        ("args.get(\"eps\", 1e-5) if center else args[\"eps\"]", "args.get(\"eps\", 1e-5)", f"{_FORGED}arguments[no eps]"),
    ),
    *_enclosing(
        "alignment",
        ("low >= 0.0 and balls.between(square, low, high)", "True", f"{_FORGED}constants"),
        ("type(least) is float and least >= 0.0", "True", f"{_FORGED}distance"),
        ('require(balls.between(square, least, math.inf)', 'require(True', f"{_FORGED}distance"),
    ),
    *_enclosing(
        "ball_functions",
        ("outer * steep * (steep * x).exp()", "outer * (steep * x).expm1()", _ENCLOSED),
        ("(-3.0, _constant(0)), (3.0, lambda x: ((x + 3) / 6,", "(-3.0, _constant(0)), (3.0, lambda x: ((x + 2) / 6,", _ENCLOSED),
        ("e.log1p() / beta, 1 / (1 + e)", "e.log1p() / beta, e / (1 + e)", _ENCLOSED),
    ),
    *_on_graphs(
        "degrees",
        ("if UNKNOWN in kinds or len(kinds) > 1:", "if UNKNOWN in kinds:"),
        ("return ZERO if ZERO in factors else sum(factors)", "return ZERO if ZERO in factors else max(factors)"),
        ("zero = not moves and tuple", "zero = tuple"),
        ('if base == "scatter":\n        return reduce is None', 'if base == "scatter":\n        return True'),
        ('return reduce in ("sum", "mean")', "return True"),
        ("p if dtype in FLOATS or p in (0, ZERO) else UNKNOWN for", "p for"),
        ('require(node.args["pure"] is True,', "require(True,"),
        ('require(node.args["trainable"] is True,', "require(True,"),
        ("require(name in names,", "require(True,"),
        ('if base in ("div", "divide", "true_divide") and args.get("rounding_mode") is None:',
         'if base in ("div", "divide", "true_divide"):'),
        ("return drawn and not _is_inert(node)", "return False"),
    ),
    *_on_graphs(
        "analytic",
        ("THRESHOLD = 20.0", "THRESHOLD = 19.0"),
        ('self._demand(isinstance(eps, float) and eps > 0.0, "its eps', 'self._demand(True, "its eps'),
        ("self._demand(given and shifted.positive,", "self._demand(given,"),
        ('smooth = inner.low >= 0.0 or inner.high <= 0.0', "smooth = True"),
        ('self._demand(not checked or divisor.range.nonzero,', "self._demand(True,"),
        ('self._demand(self.of("self").positive, "its argument', 'self._demand(True, "its argument'),
        ('self._demand(not scores.masked or (scores.masked == "rows" and last),', "self._demand(True,"),
        ('return "any" if inner and first == "rows" else first', "return first"),
        ('in at and node.args["trainable"] is True and node.args["pure"] is True', "in at"),
        ("if values[index].masked:", "if False:"),
    ),
    *_on_graphs(
        "ranges",
        ('return self.low > 0.0 or (self.low == 0.0 and self.low_open)', "return self.low >= 0.0"),
        ("return Range(low, high, a.low_open or b.low_open, a.high_open or b.high_open)",
         "return Range(low, high, True, True)"),
        ('attained = name in ("relu", "sqrt") and not a.positive', "attained = False"),
    ),
    *_on_graphs(
        "methods",
        ("set(annotation[k]) <= {1, ZERO}", "set(annotation[k]) <= {0, 1, ZERO}"),
        ("require(bool(np.array_equal(stored, flat(annotation))),", "require(True,"),
        ("gaps = domain_gaps(graph) if everywhere else []", "gaps: list[Barrier] = []"),
        ("analytic = bool(nonzero) and not walk(graph)[1]", "analytic = bool(nonzero)"),
    ),
    *_mutants(
        "floats",
        ("U = power(-53)", "U = power(-54)"),
        ("U = power(-53)", "U = power(-60)"),
        ("OMEGA = power(-1022)", "OMEGA = power(-1023)"),
        ("OMEGA = power(-1022)", "OMEGA = power(-1029)"),
        ("return k * U / (1 - k * U)", "return k * U / 2 / (1 - k * U)"),
        ("return gamma(k) * left * right + entries * k * OMEGA", "return gamma(k) * left * right"),
        ("return gamma(k) * left * right + entries * k * OMEGA", "return entries * k * OMEGA"),
        ("return gamma(k) * left * right + entries * k * OMEGA", "return gamma(k) * left * right + k * OMEGA"),
        ("root = sqrt_up((Fraction(computed) + x.size * OMEGA) / (1 - gamma(x.size)))",
         "root = sqrt_up(Fraction(computed) / (1 - gamma(x.size)))",
         _UNDERFLOW),
        ("root = sqrt_up((Fraction(computed) + x.size * OMEGA) / (1 - gamma(x.size)))",
         "root = sqrt_up(Fraction(computed) + x.size * OMEGA)"),
        ("return (root + (x.size * power(-1074) if e else 0)) * power(e) if computed", "return root * power(e) if computed",
         _UNDERFLOW),
        ("root = sqrt_down((Fraction(computed) - x.size * OMEGA) / (1 + gamma(x.size)))",
         "root = sqrt_down(Fraction(computed) / (1 + gamma(x.size)))",
         _UNDERFLOW),
        ("root = sqrt_down((Fraction(computed) - x.size * OMEGA) / (1 + gamma(x.size)))",
         "root = sqrt_down(Fraction(computed) - x.size * OMEGA)"),
        ("return max(root - (x.size * power(-1074) if e else 0), Fraction(0)) * power(e)",
         "return max(root, Fraction(0)) * power(e)",
         _UNDERFLOW),
        ("/ (1 - gamma(size.shape[axis])) for axis in (0, 1)]", "for axis in (0, 1)]"),
        ("return np.sqrt(squares + k * float(OMEGA)) * (1.0 + 2.0 * (k + 8) * float(U))",
         "return np.sqrt(squares + k * float(OMEGA)) * (1.0 + (k + 8) * float(U))"),
        ("return np.sqrt(squares + k * float(OMEGA)) * (1.0 + 2.0 * (k + 8) * float(U))",
         "return np.sqrt(squares) * (1.0 + 2.0 * (k + 8) * float(U))"),
        ("depth = width + count + 1", "depth = (width + count + 1) // 2"),
        ("depth = width + count + 1", "depth = 0"),
        ("errors = noise + gamma(count + 1) * (size + Fraction(shift)) + gamma(depth) * length",
         "errors = gamma(count + 1) * (size + Fraction(shift)) + gamma(depth) * length"),
        ("errors = noise + gamma(count + 1) * (size + Fraction(shift)) + gamma(depth) * length",
         "errors = noise + gamma(depth) * length"),
        ("errors = noise + gamma(count + 1) * (size + Fraction(shift)) + gamma(depth) * length",
         "errors = noise + gamma(count + 1) * size + gamma(depth) * length",
         "the shift is at most a share of the size wherever a floor is positive, and that share is below what is pinned"),
        ("errors = noise + gamma(count + 1) * (size + Fraction(shift)) + gamma(depth) * length",
         "errors = noise + gamma(count + 1) * (size + Fraction(shift))"),
        ("errors += order * order * depth * OMEGA", "errors += depth * OMEGA"),
        ("floor = Fraction(shift) - sqrt_up(rest) - errors", "floor = Fraction(shift) - errors"),
        ("floor = Fraction(shift) - sqrt_up(rest) - errors", "floor = Fraction(shift) - sqrt_up(rest)"),
        ("rest += 2 * remainder**2", "rest += remainder**2"),
        ("length += tile_norm**2", "length += 0"),
        ("rest += norm_up(square - factor @ factor.T) ** 2", "rest += 0"),
        ("length += norm_up(factor) ** 2", "length += norm_up(factor)"),
        ("noise = product_error(d, square, Fraction(1), n * n)", "noise = product_error(d, square, Fraction(1), n * n) / 2"),
        ("n, square + noise, noise, target, run)", "n, square, noise, target, run)"),
        ("norm_up(residual) * (1 + gamma(1)) + product_error(d, norm_up(A), norm_up(X), n * n)",
         "norm_up(residual) * (1 + gamma(1))"),
        ("norm_up(residual) * (1 + gamma(1)) + product_error(d, norm_up(A), norm_up(X), n * n)",
         "product_error(d, norm_up(A), norm_up(X), n * n)"),
        ("norm_up(residual) * (1 + gamma(1)) + product_error(d, norm_up(A), norm_up(X), n * n)",
         "norm_up(residual) + product_error(d, norm_up(A), norm_up(X), n * n)"),
        ("        row[i] += one", "        row[i] += 0"),
        ("floor = (1 - epsilon) / largest", "floor = 1 / largest"),
    ),
    *_mutants(
        "data",
        ("array = np.array(block, order=\"C\", copy=True)", "array = np.asarray(block)"),
        ("(0, 1) if kind[1] == \"b\"", "(0, 255) if kind[1] == \"b\"",
         "numbers other than 0 and 1 differ from what they are as truth values, which is asked besides"),
        (" and np.array_equal(rows, array)", ""),
        ("rows = array.astype(kind, copy=False)", "rows = array.astype(kind.replace(\"8\", \"4\"), copy=False)"),
        ("patterns[patterns == np.iinfo(patterns.dtype).min] = 0", "pass"),
        ("f\"rows {kind} {shape}\".encode()", "f\"rows {kind}\".encode()"),
        ("f\"rows {kind} {shape}\".encode()", "f\"rows {shape}\".encode()"),
        ("    content.update(b\"\".join(digests))\n", ""),
        ("seen.setdefault(digest, i)", "i"),
        ("seen.setdefault(digest, i)", "seen.setdefault(digest[:1], i)"),
        ("    require_ieee(threaded=True)  # the source may have changed the arithmetic\n", ""),
        ("rounded_down(min(total / n, Fraction(sys.float_info.max)))", "rounded_down(total / n)"),
        ("rounded_down(min(total / n, Fraction(sys.float_info.max)))", "float(min(total / n, Fraction(sys.float_info.max)))"),
        ("np.lexsort((Y[:, 0], first))", "np.argsort(first, kind=\"stable\")"),
        ("np.maximum.reduceat(parts, ", "np.minimum.reduceat(parts, "),
        ("np.minimum(sums, rest).sum()", "np.maximum(sums, rest).sum()"),
        ("return _entropy(sums, before + after, n, ", "return _entropy(sums, before + after, len(sums), "),
        ("before + after", "before"),
        ("before + after", "after"),
        ("np.vstack([sums, rest]), np.vstack([rest, sums])", "sums, rest"),
        ("2.0**_FAR", "math.inf"),
        ("- parts\n", "\n"),
        ("(1 - (terms + 2) * power(-51) - LIBRARY)", "(1 - (terms + 2) * power(-52) - LIBRARY)"),
        ("(1 - (terms + 2) * power(-51) - LIBRARY)", "(1 - 2 * power(-51) - LIBRARY)"),
        ("(1 - (terms + 2) * power(-51) - LIBRARY)", "(1 - (terms + 2) * power(-51))"),
        ("(1 - (terms + 2) * power(-51) - LIBRARY)", "(1 - (terms + 2) * power(-51) - LIBRARY / 2)"),
        ("rounded_down(total / n - power(-1000))", "rounded_down(total / n)"),
        ("np.minimum(others / parts, 2.0**1000)", "others / parts"),
        ("sum(by_size, Fraction(0)) * power(2 * low)", "sum(by_size, Fraction(0)) * power(low)"),
        ("(Fraction(int(numerators[counts == k].sum()), k)", "(Fraction(int(numerators[counts == k].sum()), 1)"),
        ("np.maximum(exponents - low, 0)", "np.maximum(exponents - low, 1)"),
        (" - np.add.reduceat(values, heads) ** 2", ""),
        ("    same = equal(inputs[\"Z\"], inputs[\"Z\"][inputs[\"X\"][0]])\n", "    same = True\n"),
    ),
    *_mutants(
        "certificate",
        ("    sentence = sentence.replace(\" of X\", f\" of {rows_of(certificate)}\")\n", ""),
        ("        template = template.replace(\"parameters of any layer have\", \"function of a row of X has\")\n", "        pass\n"),
    ),
    *_mutants(
        "exact",
        ("FARTHEST = 1000", "FARTHEST = 2200"),
        ("return Fraction(root + 1, 1 << shift) if x else x", "return Fraction(root, 1 << shift) if x else x"),
        ("return np.where(patterns == _SIGN, 0, patterns)", "return patterns"),
        ("np.where(biased > 0, _FRACTION + 1, 0)", "(_FRACTION + 1)"),
        ("np.maximum(biased, 1) - 1075", "biased - 1075"),
        ("total[column] += (mantissa * factor) << shift", "total[column] += mantissa * factor"),
    ),
    *_mutants(
        "gates",
        ("LIBRARY = power(-40)", "LIBRARY = power(-41)"),
        ("LIBRARY = power(-40)", "LIBRARY = power(-47)"),
        ("argument = gamma(m) * longest * steepest + m * OMEGA + delta * steepest", "argument = delta * steepest"),
        ("argument = gamma(m) * longest * steepest + m * OMEGA + delta * steepest",
         "argument = gamma(m) * longest * steepest + m * OMEGA"),
        ("argument = gamma(m) * longest * steepest + m * OMEGA + delta * steepest",
         "argument = gamma(m) * longest * steepest + delta * steepest"),
        ("relative = 2 * argument + 2 * LIBRARY + 2 * U", "relative = argument + 2 * LIBRARY + 2 * U"),
        ("relative = 2 * argument + 2 * LIBRARY + 2 * U", "relative = 2 * argument + LIBRARY + 2 * U"),
        ("relative = 2 * argument + 2 * LIBRARY + 2 * U", "relative = 2 * argument + 2 * LIBRARY"),
        ("moved = relative * units + (1 + relative) * delta *", "moved = (1 + relative) * delta *"),
        ("moved = relative * units + (1 + relative) * delta *", "moved = relative * units + delta *"),
        ("moved += n * h * heaviest * longest * power(_RANGE - 1019)", "moved += 0"),
        ("noise = gamma(m + h + 1) * size", "noise = gamma((m + h + 1) // 2) * size"),
        ("noise = gamma(m + h + 1) * size", "noise = 0 * size"),
        ("+ n * n * (m + h + 1) * power(2 * _RANGE - 1020)", ""),
        ("bound: Fraction = smallest / top", "bound: Fraction = smallest"),
        ("definite_floor(tile, n, size + noise, noise, (claimed * top + moved) ** 2, run)) - moved",
         "definite_floor(tile, n, size + noise, noise, (claimed * top + moved) ** 2, run))"),
        ("part *= Z[rows] @ Z[columns].T", "part *= np.abs(Z[rows] @ Z[columns].T)"),
    ),
    *_mutants(
        "exploration",
        ("Fraction(14426, 10000)", "Fraction(144260, 10000)"),
        ("Fraction(14426, 10000)", "Fraction(15, 10)"),
        ("(Fraction(1, 2) if stops.size > 1 else 1)", "1"),
        ("bound = least - power(-halvings) * sqrt_up(Fraction(width)) * size", "bound = least"),
        ("bound = least - power(-halvings) * sqrt_up(Fraction(width)) * size", "bound = least - power(-halvings) * size"),
        ("size = sqrt_up(total) + delta * sqrt_up(Fraction(rows.n))", "size = sqrt_up(total)"),
        ("error = gamma(rows.m) * longest * length + rows.m * OMEGA + delta * reach",
         "error = gamma(rows.m) * longest * length + rows.m * OMEGA"),
        ("error = gamma(rows.m) * longest * length + rows.m * OMEGA + delta * reach", "error = rows.m * OMEGA + delta * reach"),
        ("error = gamma(rows.m) * longest * length + rows.m * OMEGA + delta * reach",
         "error = gamma(rows.m) * longest * length / 2 + rows.m * OMEGA + delta * reach"),
        ("target = floors[k] + delta * sqrt_up(Fraction(stop - start))", "target = floors[k]"),
        ("target = floors[k] + delta * sqrt_up(Fraction(stop - start))", "target = floors[k] + delta"),
        ("if gram_floor(block, target**2) >= target**2:", "if gram_floor(block, target) >= 0:"),
    ),
    *_mutants(
        "matrices",
        ("/ (1 - gamma(T + 1)) + n * m * T * OMEGA", "+ n * m * T * OMEGA"),
        ("lost += gamma(T) * share", "lost += 0"),
        ("most, additions = max(most, roundings + 2 * T), additions + added", "most, additions = max(most, roundings), additions"),
        ("most, additions = max(most, roundings + 2 * T), additions + added", "most, additions = 0, 0"),
        ("lost += n * m * a * b * T * OMEGA * power(400)", "lost += 0"),
        ("+ (n * m) ** 2 * terms**2 * OMEGA * power(804)", ""),
        ("floor = (sqrt_down(eigenvalue) - lost) / top", "floor = sqrt_down(eigenvalue) / top"),
        ("floor = (sqrt_down(eigenvalue) - lost) / top", "floor = sqrt_down(eigenvalue) - lost"),
        ("return a + b + 1, 1", "return a, 1"),
        ("return min(step, a) * b, len(starts)", "return b, 1"),
    ),
    *_mutants(
        "matrices",
        ("return number(ball, \"value\") * power(top)", "return number(ball, \"value\")"),
        ("sqrt_up(Fraction(shape[1] * squares))", "sqrt_up(Fraction(squares))"),
        ("radius: Fraction = (spectral_up(scaled) + scaled.size * power(-1074)) * power(top)",
         "radius: Fraction = (spectral_up(scaled) + scaled.size * power(-1074))"),
        ("claimed = number(certificate.constants, \"s_min\") * top if stated", "claimed = number(certificate.constants, \"s_min\") if stated"),
        ("moved = delta * length", "moved = Fraction(0)"),
        ("absorbed = (slope + delta * longest + (size + delta) * moved) / (floor - delta)", "absorbed = slope / (floor - delta)"),
        ("absorbed = (slope + delta * longest + (size + delta) * moved) / (floor - delta)",
         "absorbed = (slope + delta * longest + (size + delta) * moved) / floor"),
        ("absorbed = (slope + delta * longest + (size + delta) * moved) / (floor - delta)",
         "absorbed = (slope + delta * longest + delta * moved) / (floor - delta)"),
        ("distance = norm_down(residual) - error - moved - absorbed", "distance = norm_down(residual) - moved - absorbed"),
        ("distance = norm_down(residual) - error - moved - absorbed", "distance = norm_down(residual) - error - absorbed"),
        ("distance = norm_down(residual) - error - moved - absorbed", "distance = norm_down(residual) - error - moved"),
        ("longest = norm_up(residual) + error", "longest = norm_up(residual)"),
        ("return [A.shape[1] << 2 * int(length) for length in lengths]", "return [1 << int(length) for length in lengths]"),
        ("bound = math.prod(sorted(_row_squares(A), reverse=True)[: most + 1])",
         "bound = math.prod(sorted(_row_squares(A), reverse=True)[: (most + 1) // 2])"),
        ("bound = math.prod(sorted(_row_squares(A), reverse=True)[: most + 1])",
         "bound = math.prod(sorted(_row_squares(A))[: most + 1])"),
        ("        product *= p\n", "        product *= p * p\n"),
        ("            independent_modulo(A, most, \"A\")\n", "            pass\n"),
        ("remains[dropped] = False", "remains[dropped] = True"),
        ("lines.shape[0] - len(first)) + f\" (", "lines.shape[0] - len(first) - 1) + f\" ("),
    ),
    *_mutants(
        "exact",
        ("_TERMS = 2048", "_TERMS = 65536"),
        ("_TRIES = 4", "_TRIES = 0"),
        ("inverse = pow(int(panel[k, column]), -1, p)", "inverse = 1"),
        ("powers = np.array([pow(2, k % (p - 1), p)", "powers = np.array([pow(2, k % p, p)"),
    ),
    *_mutants(
        "optimality",
        ("e = (rounded_up(gamma(m)) * (sizes @ np.abs(gates)) + m * _TINY) * ROOM", "e = (m * _TINY) * ROOM + 0 * x"),
        ("moved = (1.2 * e * np.exp(-np.abs(x)) + 2.0 * _LIBRARY * s) * ROOM + _TINY",
         "moved = (0.6 * e * np.exp(-np.abs(x)) + 2.0 * _LIBRARY * s) * ROOM + _TINY"),
        ("moved = (1.2 * e * np.exp(-np.abs(x)) + 2.0 * _LIBRARY * s) * ROOM + _TINY",
         "moved = (1.2 * e * np.exp(-np.abs(x)) + _LIBRARY * s) * ROOM + _TINY"),
        ("sums = rounded_up(gamma(h + m + 3))", "sums = rounded_up(gamma((h + m + 3) // 2))"),
        ("radius[:, j] = terms * ROOM * ROOM", "radius[:, j] = 0.01 * terms * ROOM * ROOM"),
        ("radius[:, j] = terms * ROOM * ROOM", "radius[:, j] = 0.5 * terms * ROOM * ROOM"),
        ("slack = 16.0 * _LIBRARY + 2.0 * f.shape[1] * _U", "slack = 8.0 * _LIBRARY + f.shape[1] * _U"),
        ("spread = (radius + label_radius) * ROOM", "spread = radius * ROOM"),
        ("above = np.logaddexp(0.0, high) * (1.0 + 4.0 * _LIBRARY) + _TINY", "above = np.logaddexp(0.0, high)"),
        ("below = np.logaddexp(0.0, low) * (1.0 - 4.0 * _LIBRARY) - _TINY", "below = np.logaddexp(0.0, low)"),
        ("high, low = (size + radius) * FINE, size / FINE - radius * FINE", "high, low = size, size"),
        ("        high, low = t + radius * ROOM, t - radius * ROOM", "        high, low = t, t"),
    ),
    *_mutants(
        "snapshot",
        ("data = {name: np.array(array, order=\"C\", copy=True) for", "data = {name: np.asarray(array) for"),
        ("array = np.array(value, order=\"C\", copy=True)", "array = np.asarray(value)"),
        ("            self._digests = digests", "            pass"),
    ),
]  # fmt: skip

_COMPRESSED = "the rank of L A R is at most that of A, for any L and R, the identity too"

HARMLESS_COMPARISONS: dict[str, str] = {
    "exact.py: M.shape[1] > rank": _COMPRESSED,
    "exact.py: M.shape[0] > rank": _COMPRESSED,
    "verify.py: threads > 1": "the same pieces are checked, beside each other or in turn",
}
"""Comparisons of the kernel, by file and text, that no test has to notice when they are turned round, and why."""
