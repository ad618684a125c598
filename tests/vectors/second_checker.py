"""A second checker of certificates: slow and plain, in integers and fractions, with the standard library only.

It was written from docs/certificate_format.md and not from the kernel, and imports nothing of alignver. It decides what
a certificate states, exactly, and does not follow the proof: a certificate is accepted if its statement is true,
refuted if it is false or the certificate is not in the format, and not decided if this program cannot tell.

    python second_checker.py CERTIFICATE --input A=A.npy

Ranks are computed modulo a prime that is larger than every minor. What is said about singular values, distances and
norms is that a symmetric matrix is positive (semi)definite. Exponentials and logarithms are enclosed by series.
"""

import argparse
import ast
import functools
import hashlib
import itertools
import json
import math
import pathlib
import re
import struct
import sys
from fractions import Fraction
from operator import mul


class Refuted(Exception):
    """The statement is false, or this is no certificate about these inputs."""


class NotDecided(Exception):
    """This program cannot tell."""


def require(condition, otherwise):
    if not condition:
        raise Refuted(otherwise)


# -- files ------------------------------------------------------------------------------------------------------------

NAMES = ("certificate.json", "data.npz")
FIELDS = ["claim", "constants", "data", "data_file", "format", "inputs", "method", "seal", "version", "versions"]
CODES = {"b1": "?", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q",
         "f2": "e", "f4": "f", "f8": "d"}  # fmt: skip


class Array:
    """Numbers in row-major order: Python's ints, bools and floats, the last only as names of dyadic fractions."""

    def __init__(self, dtype, shape, flat):
        self.dtype, self.shape, self.flat = dtype, tuple(shape), flat

    def rows(self):
        """Return a matrix as rows of fractions; a vector is one row."""
        width = self.shape[-1]
        return [[Fraction(v) for v in self.flat[i : i + width]] for i in range(0, len(self.flat), width)]

    def record(self):
        content = f"{self.dtype} {self.shape}".encode() + packed(self.flat, self.dtype)
        return {"sha256": hashlib.sha256(content).hexdigest(), "shape": list(self.shape), "dtype": self.dtype}


def packed(values, dtype):
    return struct.pack(f"<{len(values)}{CODES[dtype[1:]]}", *values)


def npy(content, kinds, orders=(False, True)):
    """Read the bytes of a .npy file, of one of the dtypes and orders (column-major or not)."""
    require(content[:6] == b"\x93NUMPY" and content[6:8] in (b"\1\0", b"\2\0"), "no .npy file of version 1 or 2")
    start = 10 if content[6] == 1 else 12
    length = int.from_bytes(content[8:start], "little")
    try:
        header = ast.literal_eval(content[start : start + length].decode("latin-1"))
        dtype, columns, shape = header["descr"], header["fortran_order"], header["shape"]
        known = isinstance(dtype, str) and dtype[1:] in CODES and dtype in kinds and columns in orders
        require(known, f"an array of dtype {dtype!r}, or another order")
        count = math.prod(shape)
        flat = list(
            struct.unpack(f"{'>' if dtype[0] == '>' else '<'}{count}{CODES[dtype[1:]]}", content[start + length :])
        )
    except (ValueError, SyntaxError, KeyError, TypeError, struct.error) as error:
        raise Refuted(f"no array ({type(error).__name__})") from None
    if columns and len(shape) > 1:  # column-major
        strides = [math.prod(shape[:k]) for k in range(len(shape))]
        flat = [flat[sum(map(mul, place, strides))] for place in itertools.product(*map(range, shape))]
    return Array(dtype.replace(">", "<").replace("=", "<"), shape, flat)


def serialized(document):
    return json.dumps(document, sort_keys=True, indent=1, allow_nan=False).encode("ascii")


def decoded(value):
    """Return constants with their floats; a number of JSON that is a float is none."""
    require(not isinstance(value, float), "a float in decimal digits")
    if isinstance(value, dict):
        text = value.get("float")
        if len(value) != 1 or not isinstance(text, str):
            return {key: decoded(entry) for key, entry in value.items()}
        try:
            number = float.fromhex(text)
        except (ValueError, OverflowError):
            raise Refuted("a float that is none") from None
        require(math.isfinite(number) and number.hex() == text, "a float in another form")
        return number
    return [decoded(entry) for entry in value] if isinstance(value, list) else value


def certificate(files):
    """Read the files of a certificate, {name: bytes}; return its fields, with the constants and arrays decoded."""
    require("certificate.json" in files, "no certificate.json")
    text = files["certificate.json"]
    require(len(text) <= 1 << 20, "certificate.json is too large")
    try:
        document = json.loads(text.decode("ascii"))
        require(isinstance(document, dict) and sorted(document) == FIELDS, "other fields")
        require(serialized(document) == text, "another serialization")
    except (ValueError, RecursionError) as error:
        raise Refuted(f"no JSON ({type(error).__name__})") from None
    require(document["format"] == "alignver certificate", "another format")
    require(type(document["version"]) is int and document["version"] in (1, 2), "another version")
    require(isinstance(document["claim"], str) and document["claim"] in CLAIMS, "an unknown claim")
    kinds = {"method": str, "seal": str, "inputs": dict, "constants": dict, "versions": dict, "data": dict}
    for name, kind in kinds.items():
        require(isinstance(document[name], kind), f"{name} of another type")
    sealed = {name: value for name, value in document.items() if name not in ("seal", "data_file")}
    require(hashlib.sha256(serialized(sealed)).hexdigest() == document["seal"], "the seal is broken")
    for record in [*document["inputs"].values(), *document["data"].values()]:
        require(isinstance(record, dict) and sorted(record) == ["dtype", "sha256", "shape"], "a record of another form")
    document["constants"] = decoded(document["constants"])
    document["data"] = arrays(document["data"], document["data_file"], files.get("data.npz"))
    return document


def arrays(records, data_file, content):
    size = 0
    for name, record in records.items():
        known = re.fullmatch("[A-Za-z][A-Za-z0-9_]{0,63}", name) and record["dtype"] in ("<f8", "<i8", "|u1")
        shape = record["shape"]
        known = known and isinstance(shape, list) and len(shape) <= 2
        require(known and all(type(k) is int and k >= 0 for k in shape), f"an array of another form: {name!r}")
        size += math.prod(shape) * int(record["dtype"][2:])
    require(len(records) <= 64 and size <= 2**31 - 2**20, "too many arrays, or too large")
    if content is None:
        require(not records and data_file is None, "data.npz is missing")
        return {}
    require(len(content) <= size + 1024 * (len(records) + 1), "data.npz is too large")
    digest = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    require(data_file == digest, "data.npz is another file")
    members, at = {}, 0
    for name, record in sorted(records.items()):
        member = f"{name}.npy".encode()
        head = content[at : at + 30]
        require(head[:4] == b"PK\3\4" and head[8:10] == b"\0\0", "another member than declared")
        require(head[26:30] == struct.pack("<2H", len(member), 0), "another member than declared")
        at += 30 + len(member)
        require(content[at - len(member) : at] == member, "another member than declared")
        length = math.prod(record["shape"]) * int(record["dtype"][2:])
        end = at + 10 + int.from_bytes(content[at + 8 : at + 10], "little") + length
        require(content[at + 6 : at + 8] == b"\1\0", "an array of another version")
        array = npy(content[at:end], (record["dtype"],), (False,))
        require(array.record() == record, f"{name} is another array")
        require(all(map(math.isfinite, array.flat)), f"{name} has numbers that are not finite")
        members[name], at = array, end
    return members


REALS = ["|b1", *(f"{side}{code}" for side in "<>|=" for code in CODES if code != "b1")]


def identified(claim, records, contents):
    """Return the inputs, each of which must have its record."""
    names = set(CLAIMS[claim][1])
    if claim == "factored-membership" and "A0" in contents:
        names |= {name for name in contents if re.fullmatch("[AB][0-9]+", name)}
    if claim == "optimality" and "X" in records:
        names.add("X")
    require(set(contents) == names, f"the inputs of the claim are {sorted(names)}")
    inputs = {}
    for name, content in contents.items():
        array = npy(content, REALS)
        require(array.flat and all(map(math.isfinite, array.flat)), f"{name} is empty, or not finite")
        if name == "X":
            inputs[name] = rows_of(array, records.get(name, {}))
            continue
        if name == "Y" and len(array.shape) == 1:
            array.shape = (*array.shape, 1)
        require(len(array.shape) == (1 if name == "y" else 2), f"{name} has another number of dimensions")
        exact = array.dtype[1] == "f" or all(abs(v) <= 2**53 for v in array.flat)
        require(exact, f"{name} has integers beyond 2^53")
        array = Array("<f8", array.shape, [float(v) for v in array.flat])
        require(array.record() == records.get(name), f"{name} is not the input of this certificate")
        inputs[name] = array
    return inputs


def rows_of(array, record):
    """Return the rows of X in the dtype of its record, as tuples of numbers, and their digests."""
    dtype = record.get("dtype")
    kinds = ["|b1", "|i1", "|u1", *(f"<{code}" for code in CODES if code not in ("b1", "i1", "u1"))]
    require(array.shape and dtype in kinds, "X has no rows, or another dtype")
    flat = array.flat
    if dtype[1] == "f":
        require(array.dtype[1] == "f" or all(abs(v) <= 2**53 for v in flat), "X has integers beyond 2^53")
    else:
        require(all(v == int(v) for v in flat), "X has fractions")
        flat = [int(v) for v in flat]
        require(dtype != "|b1" or set(flat) <= {0, 1}, "X has other numbers than 0 and 1")
    try:
        content = packed([v + 0.0 if dtype[1] == "f" else v for v in flat], dtype)
    except (struct.error, OverflowError):
        raise Refuted(f"X has numbers that {dtype} does not hold") from None
    flat = list(struct.unpack(f"<{len(flat)}{CODES[dtype[1:]]}", content))
    flat = [abs(v) if v == 0 else v for v in flat]  # -0.0
    require(all(map(math.isfinite, flat)), "X has numbers that are not finite")
    width = len(flat) // array.shape[0]
    rows = [tuple(flat[i : i + width]) for i in range(0, len(flat), width)]
    digests = [hashlib.sha256(packed(row, dtype)).digest() for row in rows]
    text = f"rows {dtype} {array.shape}".encode() + b"".join(digests)
    expected = {"sha256": hashlib.sha256(text).hexdigest(), "shape": list(array.shape), "dtype": dtype}
    require(record == expected, "X is not the input of this certificate")
    return rows, digests


# -- exact linear algebra ---------------------------------------------------------------------------------------------

MERSENNE = [61, 127, 521, 1279, 2203, 4253, 9689, 19937, 44497, 86243, 216091, 756839]
"""Exponents p of some primes 2^p - 1."""


def transposed(M):
    return [list(column) for column in zip(*M)]


def dot(x, y):
    return sum(map(mul, x, y))


def whole(rows):
    """Return integers, each row a multiple of the given one: ranks and signs remain."""
    result = []
    for row in rows:
        common = math.lcm(*(Fraction(v).denominator for v in row))
        row = [int(v * common) for v in row]
        divisor = math.gcd(*row) or 1
        result.append([v // divisor for v in row])
    return result


def rank(rows):
    """Return the rank of a matrix of fractions."""
    if not rows or not rows[0]:
        return 0
    rows = transposed(whole(transposed(whole(rows))))
    rows = transposed(rows) if len(rows) > len(rows[0]) else rows
    least = rank_modulo(rows, 2**61 - 1)
    while least < len(rows):
        # Hadamard: a minor of order r + 1 is at most the product of the lengths of r + 1 rows; the prime is larger.
        squares = sorted((dot(row, row) for row in rows), reverse=True)[: least + 1]
        bits = sum(square.bit_length() for square in squares) // 2 + 1
        if bits >= MERSENNE[-1] or bits * len(rows) ** 3 > 10**11:
            raise NotDecided("the rank of a matrix that is too large")
        larger = rank_modulo(rows, 2 ** next(p for p in MERSENNE if p > bits) - 1, least + 1)
        if larger == least:
            break
        least = larger
    return least


def rank_modulo(rows, p, most=None):
    """Return the rank modulo a prime, or ``most`` if it is at least that."""
    rows, rank = [[v % p for v in row] for row in rows], 0
    for column in range(len(rows[0])):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        first = rows[rank]
        inverse = pow(first[column], -1, p)
        for i in range(rank + 1, len(rows)):
            factor = rows[i][column] * inverse % p
            if factor:
                rows[i] = [(a - factor * b) % p for a, b in zip(rows[i], first)]
        rank += 1
        if rank in (len(rows), most):
            break
    return rank


def gram(rows):
    """Return the inner products of rows of fractions."""
    common = math.lcm(*(v.denominator for row in rows for v in row))
    rows, square = [[int(v * common) for v in row] for row in rows], common * common
    products = [[dot(x, y) for y in rows[: i + 1]] for i, x in enumerate(rows)]
    return [[Fraction(products[max(i, j)][min(i, j)], square) for j in range(len(rows))] for i in range(len(rows))]


def shifted(M, shift):
    return [[v - shift if i == j else v for j, v in enumerate(row)] for i, row in enumerate(M)]


def definite(M, *, semi=False):
    """Whether a symmetric matrix of fractions is positive definite, or semidefinite."""
    M, n = [row[:] for row in M], len(M)
    if any(M[i][i] < 0 or (M[i][i] == 0 and not semi) for i in range(n)):
        return False
    # Rows and columns times powers of two, which bring the diagonal near 1, and then integers.
    powers = [scale(M[i][i]) for i in range(n)]
    M = [[v * a * b for v, b in zip(row, powers)] for row, a in zip(M, powers)]
    for bits in (128, 512, 2048) if n > 12 else ():
        answer = factored(M, bits, semi)
        if answer is not None:
            return answer
    common = math.lcm(*(v.denominator for row in M for v in row))
    if common.bit_length() * n**4 > 10**11:
        raise NotDecided("a matrix that is too large, and close to a singular one")
    return eliminated([[int(v * common) for v in row] for row in M], semi)


def scale(square):
    """Return a power of two that is about 1 / sqrt(square)."""
    if not square:
        return Fraction(1)
    half = (square.denominator.bit_length() - square.numerator.bit_length()) // 2
    return Fraction(2) ** half


def eliminated(M, semi):
    """Whether a matrix of integers is positive (semi)definite: symmetric elimination without fractions (Bareiss)."""
    last = 1
    while M:
        n = len(M)
        if min(M[i][i] for i in range(n)) < 0:
            return False
        k = max(range(n), key=lambda i: M[i][i])
        if M[k][k] == 0 or (not semi and min(M[i][i] for i in range(n)) == 0):
            return semi and not any(map(any, M))
        others = [i for i in range(n) if i != k]
        M, last = [[(M[k][k] * M[i][j] - M[i][k] * M[k][j]) // last for j in others] for i in others], M[k][k]
    return True


def factored(M, bits, semi):
    """Decide by a Cholesky factorization in fixed point, whose error is known; None if that does not suffice.

    In units of 2^-bits, entries of M are rounded by less than 1, so M by less than n in norm. Those of M - t I - C C^T
    are remainders of divisions and roots, less than 2 max c + 1 < 4 2^bits in units of 2^-2bits: less than 4 n in norm.
    With t = 10 n, the smallest eigenvalue of M is above 5 n.
    """
    n, one = len(M), 1 << bits
    fixed = [[v.numerator * one // v.denominator for v in row[: i + 1]] for i, row in enumerate(M)]
    shift = 10 * n
    C = []
    for i, row in enumerate(fixed):
        c = []
        for k in range(i):
            c.append((row[k] * one - dot(c, C[k])) // C[k][k])
        rest = (row[i] - shift) * one - dot(c, c)
        if rest <= 0:
            return direction(M, C, c, semi)
        c.append(math.isqrt(rest))
        if not 0 < c[-1] < 2 * one:
            return None
        C.append(c)
    return True


def direction(M, C, c, semi):
    """Return False if the vector that a failed factorization points to is no witness of definiteness; else None."""
    k, x = len(c), [0] * len(c)
    bits = max(C[i][i].bit_length() for i in range(k)) if k else 1
    for i in reversed(range(k)):  # C^T x = -c
        x[i] = -((c[i] << bits) + sum(C[j][i] * x[j] for j in range(i + 1, k))) // C[i][i]
    x.append(1 << bits)
    value = sum(a * dot(row[: k + 1], x) for a, row in zip(x, M))
    return False if value < 0 or (value == 0 and not semi) else None


# -- roots, exponentials, logarithms ----------------------------------------------------------------------------------

BITS = 256
ONE = 1 << BITS


def root_up(x):
    """Return a fraction that is at least the root of x, and almost that."""
    shift = BITS + x.denominator.bit_length()
    return Fraction(math.isqrt((x.numerator << 2 * shift) // x.denominator) + 1, 1 << shift) if x else Fraction(0)


def quotient_up(a, b):
    return -(-a // b)


def short(x):
    """Return a fraction of few digits that is at least x, and almost that."""
    return Fraction(quotient_up(x.numerator * ONE, x.denominator), ONE)


def exponential(x):
    """Return two fractions that enclose e^x, for x <= 0: of y = -x 2^-k the series, then k squares."""
    if x < -(2**12):
        return Fraction(0), Fraction(1, 2 ** (2**12))  # e > 2
    y, k = -x, 0
    while y > Fraction(1, 256):
        y, k = y / 2, k + 1
    # Integers in units of 2^-BITS; the first one is a bound from below, the second one from above.
    low, high = y.numerator * ONE // y.denominator, quotient_up(y.numerator * ONE, y.denominator)
    least, term_low, most, term_high, terms = ONE, ONE, ONE, ONE, 0
    while term_high > 1:
        terms += 1
        term_low, term_high = term_low * low // (terms * ONE), quotient_up(term_high * high, terms * ONE)
        least, most = least + term_low, most + term_high
    most += 2 * term_high  # the rest of the series
    for _ in range(k):
        least, most = least * least // ONE, quotient_up(most * most, ONE)
    return Fraction(ONE * ONE // most, ONE), Fraction(quotient_up(ONE * ONE, least), ONE)


def logarithm(x):
    """Return two fractions that enclose ln x: 2^k m, and 2 artanh((m - 1) / (m + 1))."""
    k = x.numerator.bit_length() - x.denominator.bit_length()
    m = x / Fraction(2) ** k
    low, high = artanh((m - 1) / (m + 1))
    ends = [2 * k * end for end in artanh(Fraction(1, 3))]
    return 2 * low + min(ends), 2 * high + max(ends)


@functools.lru_cache(4096)
def artanh(z):
    """Return two fractions that enclose artanh z = z + z^3 / 3 + ..., for |z| <= 1/3."""
    if z < 0:
        low, high = artanh(-z)
        return -high, -low
    ends = []
    for rounded in (int.__floordiv__, quotient_up):
        end = rounded(z.numerator * ONE, z.denominator)
        square, total, power, terms = rounded(end * end, ONE), 0, end, 1
        while power > 2:
            total, power, terms = total + rounded(power, terms), rounded(power * square, ONE), terms + 2
        ends.append(total if rounded is int.__floordiv__ else total + 2 * power)
    return Fraction(ends[0], ONE), Fraction(ends[1], ONE)


def logistic(x):
    """Return two fractions that enclose 1 / (1 + e^-x)."""
    low, high = exponential(-abs(x))
    if x >= 0:
        low, high = 1 / (1 + high), 1 / (1 + low)
    else:
        low, high = low / (1 + low), high / (1 + high)
    return -short(-low), short(high)


def softplus(x):
    """Return two fractions that enclose ln(1 + e^x)."""
    low, high = exponential(-abs(x))
    return max(x, 0) + logarithm(1 + low)[0], max(x, 0) + logarithm(1 + high)[1]


# -- constants --------------------------------------------------------------------------------------------------------


def number(constants, name):
    value = constants.get(name)
    require(type(value) is float and value >= 0, f"{name} is no float of at least 0")
    return Fraction(value)


def integer(constants, name, least=0):
    value = constants.get(name)
    require(type(value) is int and value >= least, f"{name} is no integer of at least {least}")
    return value


def stated(c, name):
    """Return a number that is part of the claim, or None."""
    if c["version"] == 1 or name not in c["constants"]:
        return None
    proves = {"s_min": ("gram", "right inverse", "factored gram", "staircase"), "distance": ("residual",)}
    proved = c["method"] in proves[name] or (name == "distance" and c["claim"] == "network-misalignment")
    require(proved, f"{c['method']} does not prove {name}")
    return number(c["constants"], name)


def exponents(c, count):
    """Return the scaling of the certificate as powers of two; ones without a usable one."""
    powers = c["data"].get("scaling")
    usable = powers is not None and powers.dtype == "<i8" and powers.shape == (count,)
    usable = usable and all(abs(e) <= 1000 for e in powers.flat)
    return [Fraction(2) ** e for e in powers.flat] if usable else [Fraction(1)] * count


# -- matrices ---------------------------------------------------------------------------------------------------------


def ball_of(c, rows, columns):
    """Return the ball as rows of radii or one radius, of the norm or entrywise; None without one."""
    ball = c["constants"].get("ball")
    if ball is None:
        return None
    covers = ("gram", "right inverse", "residual", "factored gram", "shape", "solution")
    require(isinstance(ball, dict) and c["method"] in covers, "a ball of another form, or another method")
    require(ball.get("kind") in ("norm", "entrywise") and "value" in ball, "a ball of another form")
    if ball["kind"] == "entrywise" and ball["value"] is None:
        radii = c["data"].get("ball_radii")
        require(radii is not None and (radii.dtype, radii.shape) == ("<f8", (rows, columns)), "no radii of this shape")
        require(min(radii.flat) >= 0, "a negative radius")
        return "radii", radii.rows()
    return ball["kind"], number(ball, "value")


def least_radius(ball):
    """Return the radius of a ball in the norm that the ball contains."""
    return min(map(min, ball[1])) if ball[0] == "radii" else ball[1]


def reach(ball, powers, columns, transpose):
    """Return the square of a bound of ||D E|| over the ball, D the powers, and E with so many columns."""
    kind, radius = ball
    if kind == "norm":
        return max(powers) ** 2 * radius**2
    if kind == "entrywise":
        return radius**2 * columns * sum(p * p for p in powers)
    rows = [[p * v for v in row] for p, row in zip(powers, transposed(radius) if transpose else radius)]
    sums = max(map(sum, rows)) * max(map(sum, transposed(rows)))
    return min(sums, sum(v * v for row in rows for v in row))


def full_rank(c, W, ball, transpose):
    """Whether every matrix of a ball has full row rank; None if that is not decided."""
    products = gram(W)
    if not definite(shifted(products, least_radius(ball) ** 2)):
        return False
    if ball[0] == "norm":
        return True
    for powers in (exponents(c, len(W)), [Fraction(1)] * len(W)):
        scaled = [[v * a * b for v, b in zip(row, powers)] for row, a in zip(products, powers)]
        if definite(shifted(scaled, reach(ball, powers, len(W[0]), transpose))):
            return True
    return None


def decide(answer, false, unknown):
    require(answer is not False, false)
    if answer is None:
        raise NotDecided(unknown)


def check_s_min(c, W, products=None):
    s = stated(c, "s_min")
    if s:
        require(definite(shifted(products or gram(W), s * s), semi=True), "s_min is smaller")


def rank_claim(c, inputs):
    A, claimed = inputs["A"].rows(), integer(c["constants"], "rank")
    n, d = inputs["A"].shape
    ball, least = ball_of(c, n, d), min(n, d)
    W = A if n <= d else transposed(A)
    exact, wanted = rank(A), c["claim"] == "rank"
    require((exact == claimed) == wanted, f"the rank is {exact}")
    check_s_min(c, W)
    if ball is None or claimed > least or not any_radius(ball):
        return f"the rank is {exact}"
    # Matrices of full rank are dense.
    if (claimed < least) == wanted:
        decide(False if least_radius(ball) else None, "a matrix nearby has full rank", "some radii are 0")
    answer = full_rank(c, W, ball, n > d)
    decide(answer if wanted else answer or None, "a matrix of the ball has a smaller rank", "between two bounds")
    return "every matrix of the ball has full rank"


def any_radius(ball):
    return any(map(any, ball[1])) if ball[0] == "radii" else ball[1] > 0


def membership(c, inputs):
    J, (y,) = inputs["J"].rows(), inputs["y"].rows()
    n, d = inputs["J"].shape
    require(len(y) == n, "J and y differ in length")
    ball = ball_of(c, n, d)
    extended = [[*row, v] for row, v in zip(J, y)]
    inside = rank(J) == rank(extended)
    require(inside == (c["claim"] == "membership"), f"y is {'' if inside else 'not '}in the column space")
    if inside:
        check_s_min(c, J if n <= d else transposed(J))
    else:
        stated(c, "s_min")
        check_distance(J, y, stated(c, "distance"))
    if ball is None or not any_radius(ball) or not any(y):
        return f"y is {'' if inside else 'not '}in the column space"
    # With a left vector u, ||J^T u|| < r, a matrix in the ball has u^T J' = 0; near u there is one with u^T y != 0.
    least = least_radius(ball)
    if inside:
        nearby = least > 0 and (n > d or not definite(shifted(gram(J), least**2), semi=True))
        require(not nearby, "the column space of a matrix nearby does not have y")
        decide(full_rank(c, J, ball, False) or None, "", "between two bounds")
        return "every matrix of the ball has full row rank"
    # If ||y - J b|| < r ||b|| for some b, a matrix in the ball takes b to y; if ||J b|| < r ||b||, a multiple.
    form = bordered(transposed(J), y, least_radius(ball) ** 2, Fraction(0))
    require(definite(form, semi=True), "the column space of a matrix nearby has y")
    return outside_in_ball(c, J, y, ball, stated(c, "distance") or Fraction(0))


def bordered(columns, y, shift, square):
    """Return the matrix of ||y - J b||^2 - shift ||b||^2 - square as a form in (b, 1)."""
    M = gram([*columns, [-v for v in y]])
    d = len(columns)
    return [[v - ((shift if i < d else square) if i == j else 0) for j, v in enumerate(row)] for i, row in enumerate(M)]


def check_distance(J, y, distance):
    if distance:
        form = bordered(transposed(J), y, Fraction(0), distance**2)
        require(definite(form, semi=True), "the distance is smaller")


def outside_in_ball(c, J, y, ball, distance):
    """For all b, ||y - J' b|| >= ||y - J b|| - r ||b||, and (r ||b|| + D)^2 <= (1 + 1/t) r^2 ||b||^2 + (1 + t) D^2."""
    for powers in (exponents(c, len(J[0])), [Fraction(1)] * len(J[0])):
        columns = [[v * p for v in column] for column, p in zip(transposed(J), powers)]
        square = reach(ball, powers, len(J), True)
        if not distance:
            if definite(bordered(columns, y, square, Fraction(0))):
                return "y is outside for every matrix of the ball"
            continue
        for t in (Fraction(2) ** k for k in range(-10, 4)):
            if definite(bordered(columns, y, square * (1 + 1 / t), distance**2 * (1 + t)), semi=True):
                return "y is as far away for every matrix of the ball"
    raise NotDecided("between two bounds")


def factored_membership(c, inputs):
    constants, sources = c["constants"], {**c["data"], **inputs}
    n, m = integer(constants, "samples", 1), integer(constants, "outputs", 1)
    layers, ball = constants.get("layers"), ball_of(c, 1, 1)
    require(isinstance(layers, list) and all(isinstance(layer, dict) for layer in layers), "layers of another form")
    require(ball is not None and ball[0] == "norm", "a ball in the norm")
    require(inputs["y"].shape == (n * m,), "y has another length")
    require("s_min" in constants, "s_min is missing")
    rows = [[] for _ in range(n * m)]
    for k, layer in enumerate(layers):
        T = integer(layer, "positions", 1)
        A, B = sources.get(f"A{k}"), sources.get(f"B{k}")
        whole = A is not None and B is not None and A.dtype == B.dtype == "<f8" and len(A.shape) == len(B.shape) == 2
        require(whole and (A.shape[0], B.shape[0]) == (n * T, m * n * T), f"factors of layer {k} of another shape")
        A, B = A.rows(), B.rows()
        for r, (j, i) in enumerate(itertools.product(range(m), range(n))):
            a, b = A[i * T : (i + 1) * T], B[(j * n + i) * T : (j * n + i + 1) * T]
            rows[r] += [dot(p, q) for q in transposed(b) for p in transposed(a)]
    require(len(rows) <= len(rows[0]), "fewer columns than rows")
    products = gram(rows)
    require(definite(shifted(products, ball[1] ** 2)), "a matrix of the ball has dependent rows")
    check_s_min(c, rows, products)
    return "every matrix of the ball has full row rank"


# -- the feature matrix of gated units --------------------------------------------------------------------------------


def array(c, name, dtype, shape):
    stored = c["data"].get(name)
    require(stored is not None and (stored.dtype, stored.shape) == (dtype, shape), f"no {name} of this kind and shape")
    return stored


def features(c, Z):
    """Return the rows of Z with the constant, the width, and whether the constant was added."""
    constants, rows = c["constants"], Z.rows()
    added = constants.get("add_constant")
    require(type(added) is bool, "add_constant is no bool")
    require(added or all(row[-1] == 1 for row in rows), "the last column of Z is not 1")
    require(integer(constants, "rank", 1) == len(rows), "rank is not the number of rows")
    return [[*row, Fraction(1)] for row in rows] if added else rows, integer(constants, "width", 1), added


def exploration(c, inputs):
    return explored(c, *features(c, inputs["Z"]), number(c["constants"], "delta"))


def explored(c, Z, h, added, delta):
    """Whether phi has rank n and an s_min as large as claimed, for every Z within delta."""
    n, m = len(Z), len(Z[0])
    s = number(c["constants"], "s_min") * (Fraction(99, 100) if (c["version"], c["method"]) == (1, "staircase") else 1)
    weights, steps = [Fraction(1)] * h, None
    if c["method"] == "staircase":
        (v,) = array(c, "direction", "<f8", (m,)).rows()
        (t,) = array(c, "thresholds", "<f8", (h,)).rows()
        slope = number(c["constants"], "c")
        gates = [[slope * (p - (limit if k == m - 1 else 0)) for k, p in enumerate(v)] for limit in t]
        steps = staircase(c, Z, added, delta, v, t, slope)
    else:
        gates = transposed(array(c, "gates", "<f8", (m, h)).rows())
        if "weights" in c["data"]:
            (weights,) = array(c, "weights", "<f8", (h,)).rows()
    live = sum(w != 0 for w in weights)
    require(n <= live * m, "phi has fewer columns than rows")
    close = [
        dot(d, d) <= 4 * delta**2 for x, y in itertools.combinations(Z, 2) for d in [[a - b for a, b in zip(x, y)]]
    ]
    require(not any(close), "two rows of Z are equal, or of a matrix within delta")
    require(rank(Z) * live >= n, "the rank of Z is too small")
    shortest = min(dot(z, z) for z in Z) * sum(w * w for w in weights)
    require(s * s <= shortest, "a row of phi is shorter than s_min")
    if steps is not None and steps > 0 and steps >= s:
        return "the staircase proves it"
    return phi_claim(Z, gates, weights, s, delta, added)


def staircase(c, Z, added, delta, v, t, slope):
    """Return the lower bound of s_min(phi) of the staircase, or None if a condition fails."""
    n, m, floors = len(Z), len(Z[0]), c["data"].get("floors")
    if v[-1] or any(a < b for a, b in itertools.pairwise(t)) or floors is None or floors.dtype != "<f8":
        return None
    projections = [dot(v, z) for z in Z]
    levels = [sum(limit > p for limit in t) for p in projections]
    square = dot(v, v) + (0 if added else max(limit * limit for limit in t))
    gap = min(abs(p - limit) for p in projections for limit in t) - delta * root_up(square)
    blocks = [[z for z, level in zip(Z, levels) if level == k] for k in sorted(set(levels))]
    if max(levels) >= len(t) or gap <= 0 or len(blocks) != len(floors.flat) or max(map(len, blocks)) > m:
        return None
    for block, floor in zip(blocks, floors.flat):
        least = Fraction(floor) + delta * root_up(Fraction(len(block)))
        if floor <= 0 or not definite(shifted(gram(block), least**2), semi=True):
            return None
    size = root_up(Fraction(sum(dot(z, z) for z in Z))) + delta * root_up(Fraction(n))
    half = Fraction(1, 2) if len(blocks) > 1 else 1
    return half * Fraction(min(floors.flat)) - exponential(-slope * gap)[1] * root_up(Fraction(len(t))) * size


def phi_claim(Z, gates, weights, s, delta, added):
    """Decide s_min(phi) >= s and the rank by phi with gates of known errors, and how much phi may move with Z."""
    n = len(Z)
    if n > 60:
        raise NotDecided("too many rows")
    S, error, moved = [], Fraction(0), Fraction(0)
    for z in Z:
        row, change, size = [], Fraction(0), Fraction(0)
        for q, w in zip(gates, weights):
            low, high = logistic(dot(z, q))
            row.append(w * (low + high) / 2)
            size += (w * high) ** 2
            error += (w * (high - low)) ** 2 * dot(z, z)
            a = short(delta * root_up(dot(q[:-1], q[:-1]) if added else dot(q, q)))
            change += (w * (min(a / 4, 2 * a * high) if a <= 1 else 1)) ** 2
        S.append(row)
        length = short(root_up(dot(z, z)))
        moved += (short(root_up(size)) * delta + short(root_up(change)) * (length + delta)) ** 2
    error, moved = short(root_up(short(error))), short(root_up(short(moved)))
    products = [[a * b for a, b in zip(p, q)] for p, q in zip(gram(S), gram(Z))]
    require(s <= error or definite(shifted(products, (s - error) ** 2), semi=True), "s_min of phi is smaller")
    if definite(shifted(products, (s + error + moved) ** 2)):
        return "phi with gates of many digits has such an s_min"
    raise NotDecided("s_min of phi is not separated from the claimed one")


def no_exploration(c, inputs):
    Z, h, _ = features(c, inputs["Z"])
    n, m = len(Z), len(Z[0])
    if h * m < n or len(set(map(tuple, Z))) < n or rank(Z) * h < n:
        return "too few columns, equal rows, or a small rank of Z"
    for k in range(3):  # gates near 0 and 1 for blocks of independent rows, one after the other in some direction
        v = [Fraction(pow(7, (k + 1) * (j + 1), 1009)) for j in range(m - 1)]
        rows = sorted(Z, key=lambda z: dot(v, z))
        blocks = [[]]
        for z in rows:
            last = blocks[-1]
            if rank([*last, z]) <= len(last):
                if dot(v, z) == dot(v, last[-1]):
                    break  # no threshold between them
                blocks.append([])
            blocks[-1].append(z)
        require(sum(map(len, blocks)) < n or len(blocks) > h, "a staircase has rank n")
    raise NotDecided("no reason was found, and no staircase")


# -- data -------------------------------------------------------------------------------------------------------------

LOSSES = ("squared", "binary_cross_entropy", "cross_entropy")


def data_claim(c, inputs):
    constants, (rows, _) = c["constants"], inputs["X"]
    groups = {}
    for i, row in enumerate(rows):
        groups.setdefault(row, []).append(i)
    require(integer(constants, "rank", 1) == len(groups), f"{len(groups)} rows are distinct")
    if c["claim"] == "distinct":
        return "the rows were compared"
    require("loss" in constants and "errors" in constants, "loss or errors are missing")
    Y = inputs["Y"].rows()
    require(len(Y) == len(rows), "X and Y differ in length")
    conflict = any(Y[i] != Y[group[0]] for group in groups.values() for i in group)
    require(conflict == (c["claim"] == "conflicting"), f"equal rows have {'other' if conflict else 'equal'} targets")
    low, high, most = least_loss(list(groups.values()), Y, constants["loss"])
    floor = number(constants, "floor")
    require(floor <= high, "the least loss is smaller")
    errors = constants["errors"]
    require(errors is None or 0 <= integer(constants, "errors") <= (most or 0), "there may be fewer errors")
    if floor > low:
        raise NotDecided("the least loss agrees with the claimed one in all digits")
    return "the rows were compared, and the least loss computed"


def least_loss(groups, Y, loss):
    """Return two fractions that enclose the least mean loss of functions of a row, and the fewest errors or None."""
    n, m = len(Y), len(Y[0])
    hard = all(v in (0, 1) for row in Y for v in row)
    classes = m == 1 and loss in (None, "cross_entropy")
    labels = (
        all(v >= 0 and v.denominator == 1 for row in Y for v in row)
        if loss
        else all(v.denominator == 1 for row in Y for v in row)
    )
    require(loss is None or loss in LOSSES, "an unknown loss")
    require(loss != "binary_cross_entropy" or all(0 <= v <= 1 for row in Y for v in row), "targets beyond 0 and 1")
    require(
        loss != "cross_entropy" or (labels if classes else all(0 <= v < 2**900 for row in Y for v in row)), "no classes"
    )
    total, terms, errors = Fraction(0), [], 0
    for group in groups:
        k, columns = len(group), transposed([Y[i] for i in group])
        sums = [sum(column) for column in columns]
        if loss == "squared":
            total += sum(dot(column, column) - s * s / k for column, s in zip(columns, sums))
        elif classes:
            counts = [columns[0].count(label) for label in set(columns[0])]
            terms += [(Fraction(count), Fraction(k)) for count in counts]
            errors += k - max(counts)
        elif loss == "binary_cross_entropy":
            terms += [(part, Fraction(k)) for s in sums for part in (s, k - s)]
            errors += sum(min(s, k - s) for s in sums)
        else:
            terms += [(s, sum(sums)) for s in sums]
            errors += k - max(sums)
    if loss == "squared":
        return total / n, total / n, None
    counted = labels if classes else hard and (loss == "binary_cross_entropy" or all(sum(row) == 1 for row in Y))
    low = high = Fraction(0)
    for part, of in terms if loss else ():
        if part and part != of:
            ends = logarithm(of / part)
            low, high = low + part * ends[0], high + part * ends[1]
    return low / n, high / n, int(errors) if counted else None


# -- training losses --------------------------------------------------------------------------------------------------


def mean_loss(outputs, Y, loss):
    """Return two fractions that enclose the mean loss of outputs (pairs of ends), and bounds of the errors."""
    n, m = len(Y), len(Y[0])
    require(len(outputs) == n and len(outputs[0]) == m, "Y has another shape than the outputs")
    low, high, fewest, most = Fraction(0), Fraction(0), 0, 0
    if loss == "squared":
        for (a, b), y in zip(itertools.chain(*outputs), itertools.chain(*Y)):
            low += 0 if a <= y <= b else min((a - y) ** 2, (b - y) ** 2)
            high += max((a - y) ** 2, (b - y) ** 2)
        return low / n, high / n, 0, n
    require(loss in LOSSES, "an unknown loss")
    require(all(v in (0, 1) for row in Y for v in row), "targets are 0 and 1")
    for row, y in zip(outputs, Y):
        if loss == "cross_entropy" and m > 1:
            require(sum(y) == 1, "a row of Y has one 1")
            label = row[y.index(1)]
            leads = [(a - label[1], b - label[0]) for k, (a, b) in enumerate(row) if not y[k]]
            ends = [math_log_sum([lead[side] for lead in leads])[side] for side in (0, 1)]
            low, high = low + ends[0], high + ends[1]
        else:
            leads = [(-b, -a) if v else (a, b) for (a, b), v in zip(row, y)]
            low += sum(softplus(lead[0])[0] for lead in leads)
            high += sum(softplus(lead[1])[1] for lead in leads)
        fewest += any(lead[0] >= 0 for lead in leads)
        most += any(lead[1] >= 0 for lead in leads)
    return low / n, high / n, fewest, most


def math_log_sum(leads):
    """Return two fractions that enclose ln(1 + the sum of e^lead)."""
    top = max([*leads, Fraction(0)])
    powers = [exponential(lead - top) for lead in [*leads, Fraction(0)]]
    return top + logarithm(sum(p[0] for p in powers))[0], top + logarithm(sum(p[1] for p in powers))[1]


def gap_claim(c, loss, floor=(Fraction(0), Fraction(0))):
    """Decide that a loss, (low, high, fewest errors, most errors), exceeds a floor by at most the gap."""
    low, high, fewest, most = loss
    gap, errors = number(c["constants"], "gap"), c["constants"].get("errors", 0)
    require(low - floor[1] <= gap, "the loss is larger")
    if errors is not None:
        require(c["constants"]["loss"] != "squared", "a squared loss has no classes")
        require(fewest <= integer(c["constants"], "errors"), "there are more errors")
    if high - floor[0] > gap or (errors is not None and most > errors):
        raise NotDecided("the loss is not separated from the claimed one")
    return "the loss was computed"


def gated_outputs(inputs, theta):
    Z, R, W = (inputs[name].rows() for name in ("Z", "R", "W"))
    m = len(Z[0])
    outputs = [[] for _ in Z]
    for j, weights in enumerate(W):
        gates, part = transposed(R[j * m : (j + 1) * m]), theta[j]
        for i, z in enumerate(Z):
            low = high = Fraction(0)
            for k, q in enumerate(gates):
                ends = [s * weights[k] * dot(z, part[k * m : (k + 1) * m]) for s in logistic(dot(z, q))]
                low, high = low + min(ends), high + max(ends)
            outputs[i].append((low, high))
    return outputs


def optimality(c, inputs):
    constants = c["constants"]
    (n, m), (m_y, h) = inputs["Z"].shape, inputs["W"].shape
    shapes = {"Y": (n, m_y), "R": (m_y * m, h), "theta": (m_y, h * m)}
    require(all(inputs[name].shape == shape for name, shape in shapes.items()), "matrices of other shapes")
    Z, Y, R, W, theta = (inputs[name].rows() for name in ("Z", "Y", "R", "W", "theta"))
    require(all(z[-1] == 1 for z in Z), "the last column of Z is not 1")
    ranks, errors = constants.get("ranks"), constants.get("errors", 0)
    require(isinstance(ranks, list) and len(ranks) == m_y, "ranks has one entry for each output")
    require(errors is None or c["claim"] == "optimality", "errors is null")
    for j, entry in enumerate(ranks):
        if entry is not None:
            require(isinstance(entry, dict), "an entry of ranks is null or has s_min")
            phi_claim(Z, transposed(R[j * m : (j + 1) * m]), W[j], number(entry, "s_min"), Fraction(0), False)
    loss = mean_loss(gated_outputs(inputs, theta), Y, constants.get("loss"))
    if c["claim"] == "optimality":
        if "X" not in inputs:
            return gap_claim(c, loss)
        groups = {}
        for i, row in enumerate(inputs["X"][0]):
            groups.setdefault(row, []).append(i)
        require(sum(map(len, groups.values())) == n, "X and Y differ in length")
        require(all(Z[i] == Z[group[0]] for group in groups.values() for i in group), "Z is no function of X")
        return gap_claim(c, loss, least_loss(list(groups.values()), Y, constants["loss"])[:2])
    gap = number(constants, "gap")
    require(loss[1] > gap, "the loss itself is not larger")  # it is not negative
    smaller = None if None in ranks else Fraction(0)
    if "better" in c["data"]:
        better = array(c, "better", "<f8", (m_y, h * m)).rows()
        smaller = mean_loss(gated_outputs(inputs, better), Y, constants["loss"])[1]
    if smaller is None or loss[0] - smaller <= gap:
        raise NotDecided("no weights that are better by so much")
    return "better weights are known"


# -- graphs -----------------------------------------------------------------------------------------------------------


class Ref(int):
    """A node by its index."""


def parsed(array):
    """Return the nodes and outputs of a graph."""
    require(array is not None and array.dtype == "|u1" and len(array.shape) == 1, "no graph")
    text = bytes(array.flat)
    try:
        require(len(text) <= 1 << 26, "a graph that is too large")
        document = json.loads(text.decode("ascii"))
        same = json.dumps(document, separators=(",", ":"), allow_nan=False).encode() == text
        require(
            same and isinstance(document, dict) and set(document) == {"nodes", "outputs"}, "a graph of another form"
        )
        nodes, names = [], []
        for index, node in enumerate(document["nodes"]):
            require(set(node) == {"op", "args", "out", "module"} and node["out"], "a node of another form")
            args = {name: referred(value, index) for name, value in node["args"].items()}
            shapes = [tuple(shape) for _, shape in node["out"]]
            require(all(type(k) is int and k >= 0 for shape in shapes for k in shape), "a shape of another form")
            if node["op"] == "parameter":
                require(set(args) == {"name", "leaf", "trainable", "pure", "range"}, "a parameter of another form")
                kinds = {"name": str, "leaf": int, "trainable": bool, "pure": bool}
                require(all(type(args[name]) is kind for name, kind in kinds.items()), "a parameter of another form")
                names.append(args["name"])
            nodes.append((node["op"], args, node["out"][0][0], shapes))
        outputs = document["outputs"]
        require(len(set(names)) == len(names), "two parameters of one name")
        known = outputs and all(type(k) is int and 0 <= k < len(nodes) for k in outputs)
        require(known, "the outputs are no nodes")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Refuted(f"no graph ({type(error).__name__})") from None
    return nodes, outputs


def referred(value, index):
    if isinstance(value, list):
        return [referred(entry, index) for entry in value]
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "node":
            require(type(content) is int and 0 <= content < index, "a reference to a later node")
            return Ref(content)
        require(kind in ("dtype", "float") and isinstance(content, str), "an argument of another form")
        return content
    return value


class Dual:
    """A number and its derivatives, those that are not 0."""

    def __init__(self, value, slopes=None):
        self.value, self.slopes = Fraction(value), slopes or {}

    def __add__(self, other):
        other = dual(other)
        slopes = dict(self.slopes)
        for key, slope in other.slopes.items():
            slopes[key] = slopes.get(key, 0) + slope
        return Dual(self.value + other.value, slopes)

    def __mul__(self, other):
        other = dual(other)
        slopes = {key: slope * other.value for key, slope in self.slopes.items()} if other.value else {}
        for key, slope in other.slopes.items() if self.value else ():
            slopes[key] = slopes.get(key, 0) + slope * self.value
        return Dual(self.value * other.value, slopes)

    __radd__ = __add__

    def bent(self, slope):
        """Return the number if it is positive, else slope times it."""
        if self.value == 0 and self.slopes:
            raise NotDecided("a derivative at a kink")
        return self if self.value >= 0 else self * slope


def dual(value):
    return value if isinstance(value, Dual) else Dual(value)


class Tensor:
    """Entries in row-major order."""

    def __init__(self, shape, flat):
        self.shape, self.flat = tuple(shape), flat

    def at(self, place):
        """Return an entry, of a tensor that is broadcast."""
        place = place[len(place) - len(self.shape) :]
        index = 0
        for k, size in zip(place, self.shape):
            index = index * size + (k if size > 1 else 0)
        return self.flat[index]


def literal(value):
    if type(value) not in (int, float) or not math.isfinite(value):
        raise NotDecided("an argument that is no number")
    return Fraction(value)


def apply(op, args, shape):
    """Return the result of a core operator on tensors of numbers."""
    name = op.split(".")[1] if op.startswith("aten.") and op.count(".") == 2 else ""
    a = args.get("self", args.get("input"))
    read = {"self", "input"}

    def argument(key, default=None):
        read.add(key)
        return args.get(key, default)

    def entries(function, *tensors):
        tensors = [t if isinstance(t, Tensor) else Tensor((), [Dual(literal(t))]) for t in tensors]
        return Tensor(
            shape, [function(*(t.at(place) for t in tensors)) for place in itertools.product(*map(range, shape))]
        )

    def times(x, y):
        """Return the product of matrices, of the last two axes."""
        if len(x.shape) != 2 or len(y.shape) != 2:
            raise NotDecided(f"{name} of other tensors than matrices")
        (n, k), (rows, m) = x.shape, y.shape
        if k != rows:
            raise NotDecided(f"{name} of other shapes")
        return Tensor((n, m), [sum((x.flat[i * k + j] * y.flat[j * m + p] for j in range(k)), Dual(0))
                               for i in range(n) for p in range(m)])  # fmt: skip

    if name in ("view", "_unsafe_view", "reshape", "flatten", "clone", "alias", "contiguous", "detach", "_to_copy"):
        read |= set(args)
        result = Tensor(shape, a.flat)
    elif name in ("t", "transpose", "permute"):
        axes = list(range(len(a.shape)))
        if name == "permute":
            axes = [k % len(axes) for k in argument("dims")]
        elif len(axes) == 2:
            read |= {"dim0", "dim1"}
            axes = [1, 0] if name == "t" or args["dim0"] % 2 != args["dim1"] % 2 else axes
        else:
            i, j = argument("dim0") % len(axes), argument("dim1") % len(axes)
            axes[i], axes[j] = axes[j], axes[i]
        places = itertools.product(*map(range, shape))
        result = Tensor(shape, [a.at([place[axes.index(k)] for k in range(len(axes))]) for place in places])
    elif name in ("add", "sub"):
        factor = literal(argument("alpha", 1)) * (1 if name == "add" else -1)
        result = entries(lambda x, y: x + y * factor, a, argument("other"))
    elif name == "mul":
        result = entries(lambda x, y: x * y, a, argument("other"))
    elif name == "div":
        divisor = literal(argument("other"))
        if not divisor or argument("rounding_mode") is not None:
            raise NotDecided("a division by 0, or one that rounds")
        result = entries(lambda x: x * (1 / divisor), a)
    elif name in ("neg", "square", "relu", "leaky_relu"):
        slope = literal(argument("negative_slope", 0.01)) if name == "leaky_relu" else Fraction(0)
        functions = {"neg": lambda x: x * -1, "square": lambda x: x * x}
        result = entries(functions.get(name, lambda x: x.bent(slope)), a)
    elif name == "pow":
        exponent = literal(argument("exponent"))
        if exponent.denominator != 1 or not 1 <= exponent <= 64:
            raise NotDecided("a power that is not whole")
        result = entries(lambda x: math.prod([x] * (int(exponent) - 1), start=x), a)
    elif name in ("mm", "matmul"):
        result = times(a, argument("mat2" if name == "mm" else "other"))
    elif name == "linear":
        weight, bias = argument("weight"), argument("bias")
        rows = Tensor((math.prod(a.shape[:-1]), a.shape[-1]), a.flat)
        flipped = Tensor(
            weight.shape[::-1], [weight.at((j, i)) for i in range(weight.shape[1]) for j in range(weight.shape[0])]
        )
        product = Tensor(shape, times(rows, flipped).flat)
        result = product if bias is None else entries(lambda x, y: x + y, product, bias)
    elif name == "addmm":
        alpha, beta = literal(argument("alpha", 1)), literal(argument("beta", 1))
        product = times(argument("mat1"), argument("mat2"))
        result = entries(lambda x, y: x * beta + y * alpha, a, product)
    else:
        raise NotDecided(f"{op} is no core operator")
    if not read >= {key for key, value in args.items() if value is not None}:
        raise NotDecided(f"{op} with other arguments")
    if result.shape != shape or len(result.flat) != math.prod(shape):
        raise NotDecided(f"{op} of another shape")
    return result


def evaluated(graph, leaves, batch):
    """Return the outputs for one batch, with the values of leaves by the index of the node."""
    nodes, outputs = graph
    values = []
    for index, (op, args, dtype, shapes) in enumerate(nodes):
        if len(shapes) != 1 or dtype not in ("float16", "bfloat16", "float32", "float64"):
            raise NotDecided("a node with several results, or not of floats")
        if op in ("parameter", "constant"):
            if args.get("masked"):
                raise NotDecided("minus infinity")
            values.append(Tensor(shapes[0], leaves[index]))
        elif op == "input":
            values.append(Tensor(shapes[0], batch))
        else:
            filled = {key: values[value] if isinstance(value, Ref) else value for key, value in args.items()}
            values.append(apply(op, filled, shapes[0]))
    if len(outputs) != 1:
        raise NotDecided("several outputs")
    return values[outputs[0]]


def network(c, inputs, *, slopes, other=None):
    """Return the outputs of every sample, as duals; the last batch is filled with copies of the last sample."""
    graph = parsed(c["data"].get("graph"))
    (parameters,), x = inputs["parameters"].rows(), inputs["x"].rows()
    shapes = [node[3][0] for node in graph[0] if node[0] == "input"]
    require(len(shapes) == 1 and shapes[0] and shapes[0][0] >= 1, "the graph has not one input")
    require(len(x[0]) == math.prod(shapes[0][1:]), "x has another number of columns")
    leaves, at, trained = {}, 0, [node[1]["leaf"] for node in graph[0] if node[0] == "parameter"]
    for index, (op, args, _, shapes_of) in enumerate(graph[0]):
        if op in ("parameter", "constant"):
            size = math.prod(shapes_of[0])
            part = parameters[at : at + size]
            moves = op == "parameter" and args["trainable"]
            if moves and slopes and (args["pure"] is not True or trained.count(args["leaf"]) > 1):
                raise NotDecided("parameters that share memory")
            if op == "parameter" and args["name"] in (other or {}):
                part = other[args["name"]]
                require(len(part) == size, "other values of another shape")
                alone = moves and args["pure"] is True and trained.count(args["leaf"]) == 1
                require(alone, "a parameter that cannot be changed alone")
            named = moves and slopes
            leaves[index] = [Dual(v, {at + k: Fraction(1)} if named else None) for k, v in enumerate(part)]
            at += size
    require(at == len(parameters), "parameters has another number of entries")
    rows = shapes[0][0]
    if len(x) * at * math.prod(max((node[3][0] for node in graph[0]), key=math.prod)) > 10**8:
        raise NotDecided("a network that is too large")
    outputs = []
    for start in range(0, len(x), rows):
        batch = [x[min(i, len(x) - 1)] for i in range(start, start + rows)]
        result = evaluated(graph, leaves, [Dual(v) for row in batch for v in row])
        if result.shape[:1] != (rows,):
            raise NotDecided("an output without a row for each sample")
        width = len(result.flat) // rows
        outputs += [result.flat[i * width : (i + 1) * width] for i in range(rows)]
    return outputs[: len(x)], at


def jacobian(c, inputs):
    """Return the Jacobian, output by output, and y."""
    outputs, _ = network(c, inputs, slopes=True)
    (y,) = inputs["y"].rows()
    entries = [row[j] for j in range(len(outputs[0])) for row in outputs]
    require(len(y) == len(entries), "y has another length")
    columns = sorted({key for entry in entries for key in entry.slopes})
    return [[entry.slopes.get(key, Fraction(0)) for key in columns] for entry in entries], y


def alignment(c, inputs):
    constants = c["constants"]
    kappa = constants.get("kappa")
    require(isinstance(kappa, list) and len(kappa) == 2, "kappa has two ends")
    require(all(type(end) is float and end >= 0 for end in kappa), "ends of kappa are floats of at least 0")
    J, y = jacobian(c, inputs)
    if c["method"] == "exact":  # of independent rows, on which the others depend
        require(rank(J) == rank([[*row, v] for row, v in zip(J, y)]), "y is outside of the column space")
        rows = []
        for i in range(len(J)):
            rows += [i] if rank([J[k] for k in [*rows, i]]) > len(rows) else []
        J, y = [J[i] for i in rows], [y[i] for i in rows]
    require(bool(J and J[0]) and rank(J) == len(J), "the Jacobian has dependent rows")
    M = gram(J)
    low, high = map(Fraction, kappa)
    # The Schur complement of J J^T in [J J^T, y; y^T, k^2] is k^2 - kappa^2.
    below, above = ([*([*row, v] for row, v in zip(M, y)), [*y, k * k]] for k in (low, high))
    require(not low or not definite(below), "kappa is smaller")
    require(definite(above, semi=True), "kappa is larger")
    return "the Jacobian has independent rows"


def misalignment(c, inputs):
    distance = number(c["constants"], "distance")
    J, y = jacobian(c, inputs)
    require(rank(J) < rank([[*row, v] for row, v in zip(J, y)]), "y is in the column space")
    check_distance(J, y, distance)
    return "y is outside of the column space"


def network_exploration(c, inputs):
    require(c["constants"].get("add_constant") is True, "add_constant is true")
    outputs, _ = network(c, inputs, slopes=False)
    Z = [[*(entry.value for entry in row), Fraction(1)] for row in outputs]
    require(integer(c["constants"], "rank", 1) == len(Z), "rank is not the number of samples")
    return explored(c, Z, integer(c["constants"], "width", 1), True, Fraction(0))


def network_loss(c, inputs):
    constants, Y = c["constants"], inputs["Y"].rows()
    require(len(Y) == len(inputs["x"].rows()), "x and Y differ in length")
    require((constants.get("bits", 0) is None) == (c["method"] == "norms"), "a precision that the method does not have")

    def loss(other=None):
        outputs, _ = network(c, inputs, slopes=False, other=other)
        return mean_loss([[(entry.value, entry.value) for entry in row] for row in outputs], Y, constants.get("loss"))

    if c["claim"] == "network-optimality":
        groups = {}
        for i, row in enumerate(inputs["x"].rows()):
            groups.setdefault(tuple(row), []).append(i)
        return gap_claim(c, loss(), least_loss(list(groups.values()), Y, constants.get("loss"))[:2])
    names, gap, here = constants.get("changed"), number(constants, "gap"), loss()
    require(isinstance(names, list) and all(isinstance(name, str) for name in names), "changed is no list of names")
    require(here[1] > gap, "the loss itself is not larger")
    known = {node[1]["name"] for node in parsed(c["data"]["graph"])[0] if node[0] == "parameter"}
    require(set(names) <= known, "a parameter that the graph does not have")
    others = {}
    for k, name in enumerate(names):
        stored = c["data"].get(f"better{k}")
        require(stored is not None and stored.dtype == "<f8" and len(stored.shape) == 1, "other values are missing")
        others[name] = [Fraction(v) for v in stored.flat]
    if here[0] - loss(others)[1] <= gap:
        raise NotDecided("the other values are not better by so much")
    return "better values are known"


# -- structure and analyticity ----------------------------------------------------------------------------------------

SAME = ("view", "_unsafe_view", "reshape", "flatten", "t", "transpose", "permute", "clone", "alias", "contiguous",
        "detach", "_to_copy", "neg")  # fmt: skip
SMOOTH = ("tanh", "sigmoid", "exp", "sin", "cos")
KINKED = ("relu", "leaky_relu")
ANY, NONE = "any", "none"  # degrees: of zero, and of what has none


def base(op):
    return op.split(".")[1] if op.startswith("aten.") and op.count(".") == 2 else ""


def moving(nodes):
    """Return for each node whether it depends on a trainable parameter."""
    leaves = {node[1]["leaf"] for node in nodes if node[0] == "parameter" and node[1]["trainable"]}
    moves = []
    for op, args, _, _ in nodes:
        moves.append(args["leaf"] in leaves if op == "parameter" else any(moves[k] for k in refs(args)))
    return moves


def refs(args):
    for value in args.values():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, Ref):
                yield entry


def degrees(nodes, S):
    """Return the degree of each node in S, by the rules of core operators."""
    known, moves = [], moving(nodes)

    def of(value):
        if isinstance(value, Ref):
            return known[value]
        return (ANY if value == 0 else 0) if type(value) in (int, float) else 0 if value is None else NONE

    def joined(*terms):
        kinds = set(terms) - {ANY}
        return ANY if not kinds else kinds.pop() if len(kinds) == 1 else NONE

    def product(*factors):
        return NONE if NONE in factors else ANY if ANY in factors else sum(factors)

    for index, (op, args, _, _) in enumerate(nodes):
        name, a = base(op), args.get("self", args.get("input"))
        if op in ("parameter", "constant"):
            zero = not moves[index] and args["range"] == [0, 0] and not args.get("masked")
            degree = 1 if op == "parameter" and args["leaf"] in S else ANY if zero else 0
        elif op == "input":
            degree = 0
        elif name in SAME:
            degree = of(a)
        elif name in ("add", "sub"):
            degree = joined(of(a), of(args["other"]))
        elif name in ("mul", "matmul", "mm"):
            degree = product(of(a), of(args["mat2" if name == "mm" else "other"]))
        elif name == "linear":
            degree = product(of(a), of(args["weight"]))
            degree = degree if args.get("bias") is None else joined(degree, of(args["bias"]))
        elif name == "addmm":
            degree = joined(of(a), product(of(args["mat1"]), of(args["mat2"])))
        elif name == "square":
            degree = product(of(a), of(a))
        elif name == "div" and args.get("rounding_mode") is None:
            degree = of(a) if of(args["other"]) in (0, ANY) else NONE
        elif name in (*SMOOTH, *KINKED):
            degree = 0 if all(known[k] in (0, ANY) for k in refs(args)) else NONE
        else:
            raise NotDecided(f"{op} is no core operator")
        known.append(degree)
    return known


def is_linear(graph, S):
    known = degrees(graph[0], S)
    return all(known[k] in (1, ANY) for k in graph[1])


def divides(nodes):
    """Whether a node is a quotient by another one, which may be 0."""
    return any(base(op) == "div" and isinstance(args.get("other"), Ref) for op, args, _, _ in nodes)


def common_structure(c, inputs):
    graph, names = parsed(c["data"].get("graph")), c["constants"].get("S")
    require(isinstance(names, list) and all(isinstance(name, str) for name in names), "S is no list of names")
    require(type(c["constants"].get("everywhere")) is bool, "everywhere is no bool")
    parameters = {args["name"]: args for op, args, _, _ in graph[0] if op == "parameter"}
    require(set(names) <= set(parameters), "a parameter that the graph does not have")
    S = {parameters[name]["leaf"] for name in names}
    for name, args in parameters.items():
        if args["leaf"] in S:
            require(args["trainable"] is True and args["pure"] is True, f"{name} is not trainable, or not pure")
            require(name in names, f"{name} shares memory with a parameter of S")
    if is_linear(graph, S):
        if not (c["constants"]["everywhere"] and divides(graph[0])):
            return "the outputs are of degree 1"
        free = any(base(op) == "div" and isinstance(args["other"], Ref) and graph[0][args["other"]][0] == "parameter"
                   and graph[0][args["other"]][1]["trainable"] for op, args, _, _ in graph[0])  # fmt: skip
        decide(False if free else None, "a parameter is a divisor, and may be 0", "a divisor may be 0")
    # At some points: f(2 theta_S) = 2 f(theta_S), and f(theta_S + 2 theta'_S) = f(theta_S) + 2 f(theta'_S).
    for seed in range(1, 6):
        first, second, third = (values_at(graph, S, seed, a, b) for a, b in ((1, 0), (0, 1), (1, 2)))
        require(third == [p + 2 * q for p, q in zip(first, second)], "it is not linear in S at some points")
    raise NotDecided("it is linear in S at some points")


def values_at(graph, S, seed, first, second):
    """Return the outputs at small integers; those of S are combined of two draws."""
    counter, drawn, leaves = itertools.count(seed * 1000), {}, {}

    def draw(size):
        return [Fraction(pow(3, next(counter), 1009) % 9 - 4) for _ in range(size)]

    nodes, batch = graph[0], []
    for index, (op, args, _, shapes) in enumerate(nodes):
        size = math.prod(shapes[0])
        if op == "input":
            batch = [Dual(v) for v in draw(size)]
        if op not in ("parameter", "constant"):
            continue
        key = args["leaf"] if op == "parameter" else ("constant", index)
        if key not in drawn:
            a, b = draw(size), draw(size)
            ends = args.get("range")
            if key in S:
                a = [first * p + second * q for p, q in zip(a, b)]
            elif ends:
                a = [Fraction(ends[k % 2]) for k in range(size)]
            drawn[key] = a
        if len(drawn[key]) != size:
            raise NotDecided("parameters of other shapes that share memory")
        leaves[index] = [Dual(v) for v in drawn[key]]
    return [entry.value for entry in evaluated(graph, leaves, batch).flat]


def no_structure(c, inputs):
    graph = parsed(c["data"].get("graph"))
    leaves = sorted({args["leaf"] for op, args, _, _ in graph[0] if op == "parameter" and args["trainable"]})
    if len(leaves) <= 8:
        for size in range(len(leaves) + 1):
            for S in itertools.combinations(leaves, size):
                shared = [args for op, args, _, _ in graph[0] if op == "parameter" and args["leaf"] in S]
                whole = all(args["trainable"] is True and args["pure"] is True for args in shared)
                require(not (whole and is_linear(graph, set(S))), "there is such a set")
    zeros = [
        args
        for op, args, _, _ in graph[0]
        if op == "constant" and args["range"] and args["range"][0] * args["range"][1] <= 0
    ]
    if zeros and is_linear(zeroed(graph), set(leaves)):
        raise Refuted("there is such a set if a constant is 0, which it may be")
    raise NotDecided("no set was found")


def zeroed(graph):
    """Return the graph with every constant that may be 0 equal to 0."""
    nodes = [
        (op, {**args, "range": [0, 0]}, dtype, shapes)
        if op == "constant" and args["range"] and args["range"][0] <= 0 <= args["range"][1]
        else (op, args, dtype, shapes)
        for op, args, dtype, shapes in graph[0]
    ]
    return nodes, graph[1]


def is_polynomial(nodes):
    """Whether whatever depends on parameters is made of sums, products and functions that are analytic everywhere."""
    moves = moving(nodes)
    for index, (op, args, _, _) in enumerate(nodes):
        if op in ("parameter", "constant", "input") or not moves[index]:
            continue
        name = base(op)
        plain = name in (*SAME, *SMOOTH, "add", "sub", "mul", "matmul", "mm", "linear", "addmm", "square")
        plain = plain or (name == "div" and type(args["other"]) in (int, float) and args["other"] != 0)
        if not plain:
            return False
    return True


def analytic(c, inputs):
    graph = parsed(c["data"].get("graph"))
    if c["claim"] == "not-analytic":
        theta, moved = c["constants"].get("theta"), c["constants"].get("moved")
        known = {args["name"] for op, args, _, _ in graph[0] if op == "parameter" and args["trainable"]}
        require(isinstance(theta, dict) and set(theta) <= known and moved in known, "parameters that there are not")
        require(not is_polynomial(graph[0]), "every operation is analytic")
        raise NotDecided("for every input and every value of other parameters: this program does not tell")
    if is_polynomial(graph[0]):
        return "every operation is analytic"
    if divides(graph[0]):
        quotient = [args for op, args, _, _ in graph[0] if base(op) == "div" and isinstance(args["other"], Ref)]
        free = any(
            graph[0][args["other"]][0] == "parameter" and graph[0][args["other"]][1]["trainable"] for args in quotient
        )
        decide(False if free else None, "a parameter is a divisor, and may be 0", "a divisor may be 0")
    require(not bends(graph), "a kink is met")
    raise NotDecided("operations that this program does not know")


def bends(graph):
    """Whether an output bends as one parameter moves: a piecewise polynomial that is analytic is a polynomial.

    Along a line it then has a degree of at most 2^k with k products, and differences of a higher order are 0.
    """
    nodes = graph[0]
    leaves = {args["leaf"] for op, args, _, _ in nodes if op == "parameter" and args["trainable"]}
    products = ("mul", "matmul", "mm", "linear", "addmm")
    known = (*SAME, *KINKED, *products, "add", "sub")
    order = 2 ** sum(base(op) in products for op, *_ in nodes) + 1
    if order > 65 or not all(base(op) in known for op, *_ in nodes if op not in ("parameter", "constant", "input")):
        return False
    for leaf in leaves:
        for column in zip(*(values_at(graph, {leaf}, 1, 1, Fraction(2 * k - order)) for k in range(order + 1))):
            for _ in range(order):
                column = [b - a for a, b in itertools.pairwise(column)]
            if any(column):
                return True
    return False


# -- all of it --------------------------------------------------------------------------------------------------------

CLAIMS = {
    "membership": (membership, "J y", "gram,right inverse,minor,reduced,solution"),
    "non-membership": (membership, "J y", "null vector,residual"),
    "rank": (rank_claim, "A", "gram,right inverse,minor,null space,primes"),
    "not-rank": (rank_claim, "A", "gram,right inverse,minor,null space,primes,shape"),
    "factored-membership": (factored_membership, "y", "factored gram"),
    "exploration": (exploration, "Z", "staircase"),
    "exploration-gates": (exploration, "Z", "gram"),
    "no-exploration": (no_exploration, "Z", "count,equal rows,columns,rank of Z"),
    "distinct": (data_claim, "X", "digests"),
    "consistent": (data_claim, "X Y", "digests"),
    "conflicting": (data_claim, "X Y", "digests"),
    "optimality": (optimality, "Z Y R W theta", "outputs"),
    "suboptimality": (optimality, "Z Y R W theta", "outputs"),
    "common-structure": (common_structure, "", "degrees"),
    "no-structure": (no_structure, "", "value at zero"),
    "analytic": (analytic, "", "operations"),
    "not-analytic": (analytic, "", "one-sided derivatives"),
    "network-alignment": (alignment, "parameters x y", "balls,norms,exact"),
    "network-misalignment": (misalignment, "parameters x y", "balls,norms,exact"),
    "network-exploration": (network_exploration, "parameters x", "staircase"),
    "network-optimality": (network_loss, "parameters x Y", "norms,balls"),
    "network-suboptimality": (network_loss, "parameters x Y", "norms,balls"),
}
CLAIMS = {claim: (function, names.split(), methods.split(",")) for claim, (function, names, methods) in CLAIMS.items()}


def check(files, inputs):
    """Return the answer and a reason; the files of a certificate and the .npy files of the inputs are bytes by name."""
    try:
        c = certificate(files)
        arrays = identified(c["claim"], c["inputs"], inputs)
        function, _, methods = CLAIMS[c["claim"]]
        require(c["method"] in methods, "the claim has no such method")
        balls = ("gram", "right inverse", "residual", "solution", "shape", "factored gram")
        covered = c["method"] in balls and c["claim"] != "exploration-gates"
        require(covered or c["constants"].get("ball") is None, f"{c['method']} does not cover a ball")
        if not c["claim"].endswith("exploration") and c["claim"] != "exploration-gates":
            stated(c, "s_min"), stated(c, "distance")
        return "accepted", function(c, arrays)
    except Refuted as error:
        return "refuted", str(error)
    except NotDecided as error:
        return "not decided", str(error)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        return "refuted", f"content of another kind ({type(error).__name__}: {error})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("certificate", type=pathlib.Path)
    parser.add_argument("--input", action="append", default=[], metavar="NAME=FILE")
    options = parser.parse_args()
    place = options.certificate
    files = {path.name: path.read_bytes() for path in (place / "certificate.json", place / "data.npz") if path.exists()}
    inputs = {
        name: pathlib.Path(file).read_bytes() for name, _, file in (pair.partition("=") for pair in options.input)
    }
    answer, reason = check(files, inputs)
    print(f"{answer}: {reason}")
    return {"accepted": 0, "refuted": 1, "not decided": 3}[answer]


if __name__ == "__main__":
    sys.set_int_max_str_digits(4300)
    sys.exit(main())
