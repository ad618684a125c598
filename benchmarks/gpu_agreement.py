"""Compare the results of a GPU with those of the CPU on the same inputs, each with its bound."""

from __future__ import annotations

import copy
import functools
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gpu_run import Run, clean, places, require_plain_arithmetic, short

import alignver as av
from alignver.arrays import host
from alignver.experiments.networks import fully_connected, lenet, resnet18
from alignver.network.feature_extraction import extract_features
from alignver.results import CheckResult, Verdict

CLOSE = 2.0**-40
"""Tolerance for two float64 results, relative to their norm: sums in these networks have fewer than 4096 roundings of
2^-53 on either side. Results within it agree; this does not prove either of them."""
CLOSE_32 = 2.0**-11  # the same with 2^-24 for float32
OPPOSITE = {("HOLDS", "FAILS"), ("FAILS", "HOLDS")}


class Comparisons:
    """All comparisons with the CPU, their bounds, and the failed comparisons."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.made: list[dict[str, Any]] = []
        self.open: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.disagreements: list[str] = []

    def of(self, name: str, work: Callable[[], Iterator[tuple[str, bool, Any]]]) -> None:
        """Record the comparisons that ``work`` yields: (bound in words, whether it is satisfied, measured value)."""
        began = time.perf_counter()
        try:
            for bound, kept, measured in work():
                self._one(name, bound, kept, measured)
        except Exception:
            self._one(name, "it runs", False, clean(traceback.format_exc()[-1500:]))
        self.seconds[name] = round(time.perf_counter() - began, 2)
        self.run.document["results"] = {
            "comparisons": len(self.made),
            "disagreements": self.disagreements,
            "undecided on one side": self.open,
            "details": self.made,
            "seconds by comparison": self.seconds,
        }
        self.run.keep()

    def _one(self, name: str, bound: str, kept: bool, measured: Any) -> None:
        self.made.append({"what": name, "bound": bound, "satisfied": kept, "measured": measured})
        if not kept:
            self.disagreements.append(f"{name}: {bound}: {short(measured)}")
            print(f"  DISAGREES {self.disagreements[-1]}", flush=True)

    def verdicts(self, here: CheckResult, there: CheckResult) -> Iterator[tuple[str, bool, Any]]:
        """Compare verdict, rigor and rank; UNDECIDED on one side is reported but is not a failure."""
        pair = here.verdict.value, there.verdict.value
        if pair[0] != pair[1] and pair not in OPPOSITE:
            self.open.append({"verdicts": pair, "reasons": [here.reason, there.reason]})
        yield "verdicts are not opposite", pair not in OPPOSITE, pair
        if pair[0] == pair[1]:
            rigor = here.rigor.value, there.rigor.value
            yield "of equal rigor", rigor[0] == rigor[1], rigor
            ranks = here.measured.get("rank"), there.measured.get("rank")
            yield "of equal rank", ranks[0] == ranks[1], ranks


def near(here: Any, there: Any, limit: float = CLOSE) -> Iterator[tuple[str, bool, Any]]:
    """Compare arrays in the Frobenius norm."""
    here, there = (host(value).astype(np.float64) for value in (here, there))
    far = float(np.linalg.norm(there - here) / max(np.linalg.norm(here), 1e-300))
    yield f"||there - here||_F <= 2^{np.log2(limit):.0f} ||here||_F", far <= limit, far


def agreement(run: Run) -> None:
    """Run the same inputs on the CPU and on the device, and compare all results."""
    require_plain_arithmetic(run)
    made = Comparisons(run)
    for library, put in places(run).items():
        _matrices(run, made, library, put)
        _explorations(run, made, library, put)
    _models(run, made)
    _training(run, made)
    if made.disagreements:
        raise RuntimeError(f"{len(made.disagreements)} disagreements")


def _matrices(run: Run, made: Comparisons, library: str, put: Callable[[Any], Any]) -> None:
    rng, s = np.random.default_rng(0), run.size(1, 3)
    N, d, r = 40 * s, 60 * s, 17 * s
    A = rng.standard_normal((N, d))
    low = rng.standard_normal((N, r)) @ rng.standard_normal((r, d))
    matrices = {"full row rank": A, "full column rank": A.T.copy(), f"rank {r}": low, "float32": A.astype(np.float32)}
    for name, J in matrices.items():
        member = J.astype(np.float64) @ rng.standard_normal(J.shape[1])
        for kind, y in (("a member", member), ("any y", rng.standard_normal(J.shape[0]))):
            for certify in (False, True):
                call = f"check_membership, {name}, {kind}, {'proof' if certify else 'numbers'}, {library}"

                def membership(J: Any = J, y: Any = y, certify: bool = certify) -> Iterator[tuple[str, bool, Any]]:
                    wide = y.astype(J.dtype)
                    here = av.check_membership(J, wide, certify=certify)
                    there = av.check_membership(put(J), put(wide), certify=certify)
                    yield from made.verdicts(here, there)
                    yield from _levels(here, there, max(J.shape))
                    if certify and there.certificate is not None:
                        again = av.recheck(there.certificate, J=J, y=wide)
                        yield "its certificate holds here", again.verdict is Verdict.HOLDS, again.reason

                made.of(call, membership)

        def rank(J: Any = J) -> Iterator[tuple[str, bool, Any]]:
            here, there = av.check_rank(J, certify=False), av.check_rank(put(J), certify=False)
            yield from made.verdicts(here, there)
            yield from _levels(here, there, max(J.shape))

        made.of(f"check_rank, {name}, {library}", rank)


def _levels(here: CheckResult, there: CheckResult, size: int) -> Iterator[tuple[str, bool, Any]]:
    """Compare s_1 with an error bound of max(N, d) eps s_1 each, which NumPy and MATLAB assume of an SVD."""
    own, other = (result.measured.get("largest_singular_value") for result in (here, there))
    if own is not None and other is not None:
        yield "s_1 within 2 max(N, d) eps s_1", abs(own - other) <= 2 * size * 2.0**-52 * own, [own, other]


def _explorations(run: Run, made: Comparisons, library: str, put: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(1)
    n, m = run.size((60, 9), (1500, 65))
    Z = np.column_stack([rng.standard_normal((n, m - 1)), np.ones(n)])
    twice = Z.copy()
    twice[3] = twice[5]
    for name, rows in (("general position", Z), ("two equal rows", twice)):
        for method in ("gram", "staircase"):

            def explored(rows: Any = rows, method: str = method) -> Iterator[tuple[str, bool, Any]]:
                here = av.check_safe_exploration(rows, method=method)
                there = av.check_safe_exploration(put(rows), method=method)
                yield from made.verdicts(here, there)
                seals = [None if result.certificate is None else result.certificate.seal for result in (here, there)]
                yield "certificates are equal to the last bit", seals[0] == seals[1], seals
                if there.certificate is not None:
                    again = av.recheck(there.certificate, Z=rows)
                    yield "the certificate holds here", again.verdict is Verdict.HOLDS, again.reason

            made.of(f"check_safe_exploration, {method}, {name}, {library}", explored)


class _Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.out = torch.nn.GRU(3, 4, batch_first=True), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.core(x)[0][:, -1])


def _networks(run: Run) -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    n = run.size(4, 12)
    image = torch.rand(n, 1, 16, 16, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        attention = torch.nn.Sequential(encoder, torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
        recurrent = _Recurrent().eval()
    return {
        "fully connected": (
            fully_connected(3, width=run.size(20, 100), m_y=2, seed=0),
            torch.randn(n, 3, generator=generator),
        ),
        "LeNet": (lenet(side=16, classes=4, seed=0), image),
        "ResNet-18 of width 2": (resnet18(1, 4, width=2), image),
        "attention": (attention, torch.randn(n, 4, 16, generator=generator)),
        "GRU in eval mode": (recurrent, torch.randn(n, 5, 3, generator=generator)),
    }


def _models(run: Run, made: Comparisons) -> None:
    for name, (model, x) in _networks(run).items():
        there, x_there = copy.deepcopy(model).to(run.device), x.to(run.device)
        for call in (av.jacobian, av.gram):
            for dtype, limit in (("float64", CLOSE), ("same", CLOSE_32)):
                pair = (
                    functools.partial(call, model, x, dtype=dtype),
                    functools.partial(call, there, x_there, dtype=dtype),
                )
                made.of(f"{call.__name__} in {dtype}, {name}", functools.partial(_both_near, *pair, limit))
        wide, wide_there = copy.deepcopy(model).double(), copy.deepcopy(there).double()
        pair = (
            functools.partial(extract_features, wide, x.double()),
            functools.partial(extract_features, wide_there, x_there.double()),
        )
        made.of(f"extract_features, {name}", functools.partial(_both_near, *pair, CLOSE))
        made.of(f"check_alignment, {name}", functools.partial(_aligned, made, (model, x), (there, x_there)))


def _both_near(here: Callable[[], Any], there: Callable[[], Any], limit: float) -> Iterator[tuple[str, bool, Any]]:
    yield from near(here(), there(), limit)


def _aligned(made: Comparisons, here: Any, there: Any) -> Iterator[tuple[str, bool, Any]]:
    y = torch.arange(len(here[1])) % 2
    yield from made.verdicts(*(av.check_alignment(model, x, y, loss="cross_entropy") for model, x in (here, there)))


def _training(run: Run, made: Comparisons) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(run.size(12, 60), 3, generator=generator, dtype=torch.float64)
    Y = (X.sum(1) > 0).long()

    def followed(device: torch.device) -> Any:
        model = fully_connected(3, width=run.size(16, 60), m_y=2, seed=1).double().to(device)
        x, y = X.to(device), Y.to(device)
        tracker = av.AlignmentTracker(model, x, y, loss="cross_entropy", every=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            tracker.update()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return tracker.history

    def tracked() -> Iterator[tuple[str, bool, Any]]:
        here, there = followed(torch.device("cpu")), followed(run.device)
        for own, other in zip(here, there, strict=True):
            for rule in ("press", "golub"):
                pair = own.rules[rule]["verdict"], other.rules[rule]["verdict"]
                yield f"verdicts by {rule} at step {own.step} are not opposite", pair not in OPPOSITE, pair
            far = abs(own.loss - other.loss)
            yield f"loss at step {own.step} within 2^-40", far <= CLOSE * abs(own.loss), far

    made.of("AlignmentTracker", tracked)

    def wrapper() -> Iterator[tuple[str, bool, Any]]:
        runs = []
        for device in (torch.device("cpu"), run.device):
            model = fully_connected(3, width=run.size(24, 60), m_y=2, seed=1).double().to(device)
            ee = av.EEWrapper(model, loss="cross_entropy", tau=5, epsilon=0.01, exploit_optimizer="newton")
            ee.fit((X.to(device), Y.to(device)), 10)
            runs.append((ee, ee.check(X.to(device), Y.to(device), tolerance=0.1)))
        (here, said), (there, said_there) = runs
        yield from made.verdicts(said, said_there)
        yield "rank n is proved on both", here.guarantee.proved is there.guarantee.proved, there.guarantee.proved
        for own, other in zip(here.history, there.history, strict=True):
            far = abs(own["loss"] - other["loss"])
            yield f"loss of epoch {own['epoch']} within 2^-20", far <= 2.0**-20 * max(own["loss"], 2.0**-20), far

    made.of("EEWrapper", wrapper)
