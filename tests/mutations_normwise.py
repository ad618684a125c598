"""Changes to the norm-wise enclosures: constants of bounds, terms, decisions; among them what is known to be false."""

from __future__ import annotations

from tests.mutants import Mutant, nearby

__all__ = ["NORMWISE"]


def _mutants(name: str, *changes: tuple[str, str]) -> list[Mutant]:
    return [Mutant(f"alignver/kernel/network/{name}.py", old, new, nearby("normwise")) for old, new in changes]


NORMWISE: list[Mutant] = [
    *_mutants(
        "normwise",
        ("squares = squares + np.square(part.error) * _targets(run, step, position)[2]",
         "squares = squares + np.square(part.error)"),
        ("up(math.sqrt(copies) * (e + gamma_up(copies) * size))", "up(e + gamma_up(copies) * size)"),
        ("error = up(error + part.error + U * entries.norm(value))", "error = error + part.error"),
        ("spread = entries.largest(a) * e_b + entries.largest(b) * e_a + e_a * e_b",
         "spread = entries.largest(a) * e_b + entries.largest(b) * e_a"),
        ("    return value, up(spread + U * entries.norm(value))", "    return value, up(spread)"),
        ("    return value, up(spread + U * entries.norm(value))",
         "    return value, up(spread + 0.5 * U * entries.norm(value))"),
        ("least = np.abs(entries.blocks(b)).min(-1, initial=np.inf) - e_b",
         "least = np.abs(entries.blocks(b)).min(-1, initial=np.inf)"),
        ("up(e_a + up(entries.largest(value) * e_b)) / least + U", "up(e_a) / least + U"),
        ("/ least + U * entries.norm(value))", "/ least)"),
        ("size = gamma_up(roundings + (roundings == 3))", "size = 0.1 * gamma_up(roundings)"),
        ("gamma_up(A.shape[-1]) * a_size * size_b)", "0.0 * a_size * size_b)"),
        ("    error = gamma_up(length) * size * largest", "    error = gamma_up(length - 1) * size * largest"),
        ("padded[:, :-1] = x.reshape", "padded[:, 1:] = x.reshape"),
        ("value += np.matmul(rows", "value = np.matmul(rows"),
        ("(size + math.sqrt(copies) * x.error) * W.error", "size * W.error"),
        ("(size + math.sqrt(copies) * x.error) * W.error", "(size + x.error) * 0.5 * W.error"),
        ("rounding = gamma_up(width + copies - 1)", "rounding = gamma_up(width - 1)"),
        ("math.sqrt(copies) * (rounding + (size + e) * W.error)", "math.sqrt(copies) * rounding"),
        ("g_norm, e_a, each = size, math.sqrt(copies) * x.error,", "g_norm, e_a, each = size, x.error,"),
        ("error = g_norm * e_a + a_norm * e + e_a * e + gamma_up(each) * a_size * size",
         "error = g_norm * e_a + a_norm * e + e_a * e"),
        ("return windows(conv) if conv[\"kind\"] == \"conv\" else math.prod(conv[\"kernel\"])", "return windows(conv)"),
    ),
    *_mutants(
        "operator_norms",
        ("        plain = math.sqrt(copies) * float", "        plain = float"),
        ("W.reshape(groups, channels, -1)", "W.reshape(groups, -1, channels)"),
        ("math.sqrt(windows(conv)) * adjoint", "adjoint"),
        ("math.prod(math.cos(math.pi * r / m) for", "max(math.cos(math.pi * r / m) for"),
        ("radii = [(k - 1) / 2 for k in kernel]", "radii = [max(k // 2 - 1, 0) for k in kernel]"),
        ("relative * size * size + 2.0**-900", "2.0**-900"),
        ("half = [range(sides[0] // 2 + 1)", "half = [range(sides[0] // 4 + 1)"),
        ("angle = math.pi * (rest if octant % 2 == 0 else order - rest) / (4 * order)", "angle = math.pi * rest / (4 * order)"),
        ("digest.update(np.ascontiguousarray(array).data)", "pass"),
    ),
    *_mutants(
        "row_functions",
        ("np.max(curvature * size, axis=-1, initial=0.0) * x.error", "0.5 * np.max(curvature * size, axis=-1, initial=0.0) * x.error"),
        ("error = steepest * e + bend + lengths(size * rounding) + U * lengths(value)", "error = steepest * e + bend"),
        ("up(math.sqrt(k) * (x.error +", "up((x.error +"),
        ("np.where(e == 0, 0.0, up(math.sqrt(k) * e))", "e"),
        ("(lead) > 2.0 * x.error[:, None]", "(lead) > 0.0"),
        ("up(0.5 * x.error + rounding), shifted", "up(0.45 * x.error + rounding), shifted"),
        ("up(0.5 * e + cross + rounding", "up(0.45 * e + cross + rounding"),
        ("    cross = soft.error * (first +", "    cross = 0.0 * (first +"),
        ("return value, up(math.sqrt(k) * x.error + run", "return value, up(x.error + run"),
        ("error = math.sqrt(k) * e + cross +", "error = e + cross +"),
        ("error = math.sqrt(k) * e + cross +", "error = math.sqrt(k) * e +"),
        ("return value, up(x.error + run.entries(i).norm(rounding))", "return value, up(run.entries(i).norm(rounding))"),
        ("error = e + run.entries(i).largest(g) * soft.error", "error = e"),
        ("np.maximum(sigma - e / math.sqrt(N) * SLACK, 0.0)", "np.maximum(sigma, 0.0)"),
        ("return normal.n, up(inverse * x.error + rows_norm(run, step, normal.r) + 2.0**-500)",
         "return normal.n, up(inverse * x.error + rows_largest(run, step, normal.r))"),
        ("return normal.n, up(inverse * x.error +", "return normal.n, up(0.9 * inverse * x.error +"),
        ("bend = 1.1548 / math.sqrt(N)", "bend = 0.8 / math.sqrt(N)"),
        ("1.0 / normal.lowest) * e + bend * x.error +", "1.0 / normal.lowest) * 0.9 * e + bend * x.error +"),
        ("1.0 / normal.lowest) * e + bend * x.error +", "1.0 / normal.lowest) * e +"),
    ),
    *_mutants(
        "elementwise",
        ("    y += np.maximum(x, 0.0)", "    y = np.where(beta * x > 20.0, 0.0, y) + np.maximum(x, 0.0)"),
        ("error += 4.6 * U / beta + SMALL", "error += 1.0 * U / beta + SMALL"),
        ("return x * cumulative, 5.0 * U * np.abs(x) + SMALL, 1.13", "return x * cumulative, 5.0 * U * np.abs(x * cumulative) + SMALL, 1.13"),
        ("beta * np.minimum(0.25, np.exp(-beta * _distance(x, e)))", "beta * np.minimum(0.2, np.exp(-beta * np.abs(x)))"),
        ("np.minimum(0.0963, lipschitz)", "np.minimum(0.06, lipschitz)"),
        ("np.minimum(0.77, 2.0 * lipschitz)", "np.minimum(0.5, 2.0 * lipschitz)"),
        ("if not (np.abs(x - kink) > e).all():", "if not (np.abs(x - kink) > 0.0).all():"),
        ("_power(far if q >= 0 else near, q)", "_power(np.abs(x), q)"),
        ("return np.nextafter(x - e, -np.inf), np.nextafter(x + e, np.inf)", "return x, x"),
        ("1.1284, 0.968", "1.1284, 0.7"),
        ("1.0, 0.65) if slope", "1.0, 0.4) if slope"),
        ("1.1, 0.5", "1.1, 0.35"),
        ("1.09, 0.645", "1.09, 0.45"),
        ("if Fraction(alpha) * Fraction(inner) != 1:", "if False:"),
    ),
    *_mutants(
        "radii",
        ("np.where(top > 0, np.maximum(scaled, TINY), top)", "np.sqrt(squares) * factor"),
        ("ordered = step.owner[self.order].reshape(samples, -1)", "ordered = expected"),
    ),
]  # fmt: skip
