"""When a tracker looks: every k steps, every k epochs, or as often as a share of the training time pays for.

Alignment watched along a training run: Q_T, the change of the representation, rank and residual (Section 2.2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.checks.alignment_evaluator import AlignmentEvaluation, AlignmentEvaluator
from alignver.errors import InvalidInput
from alignver.jacobians.gram import gram
from alignver.jacobians.kernel_distance import METHODS, RepresentationSnapshot, squared_distance
from alignver.jacobians.prepare import PreparedAlignment, prepare_alignment
from alignver.linalg import rank_rules
from alignver.network.inputs import as_inputs
from alignver.report.history import History, HistoryFile, Record
from alignver.results import Verdict
from alignver.theory.losses import sample_loss
from alignver.training.theorem3_conditions import Theorem3Conditions

__all__ = ["AlignmentTracker", "Clock", "Schedule"]
_NEED = "a number of steps (10), of epochs ('epoch', '5 epochs'), or a share of the training time ('5%')"
_WORDS = re.compile(r"(?:(\d+) +)?(step|epoch)s?")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One of three ways to say how often.

    Attributes
    ----------
    steps, epochs : int
        0 if it is another way.
    share : float
        Of the training time; 0.0 if it is another way.

    Examples
    --------
    >>> Schedule.of(10), Schedule.of("epoch").epochs, Schedule.of("5%").share
    (Schedule(steps=10, epochs=0, share=0.0), 1, 0.05)
    """

    steps: int = 0
    epochs: int = 0
    share: float = 0.0

    @classmethod
    def of(cls, every: int | str) -> Schedule:
        """Read what a person wrote.

        Raises
        ------
        InvalidInput
            Anything else than a positive number of steps or epochs, or a share above 0 %.
        """
        got = f"every={every!r}"
        if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
            return cls(steps=every)
        if not isinstance(every, str):
            raise InvalidInput("every", got, _NEED)
        text = every.strip().lower()
        if text.endswith("%"):
            try:
                share = float(text[:-1]) / 100.0
            except ValueError as error:
                raise InvalidInput("every", got, _NEED) from error
            if 0.0 < share < float("inf"):
                return cls(share=share)
        found = _WORDS.fullmatch(text)
        count = int(found.group(1) or 1) if found else 0
        if found is None or count < 1:
            raise InvalidInput("every", got, _NEED)
        return cls(steps=count) if found.group(2) == "step" else cls(epochs=count)

    def due_at_step(self, last: int, step: int, clock: Clock) -> bool:
        """Whether a check is due at a step, the one before having been ``last``."""
        if self.steps:
            return step // self.steps > last // self.steps
        return self.share > 0.0 and clock.affords(self.share)

    def due_at_epoch(self, epoch: int, clock: Clock) -> bool:
        """Whether a check is due at the end of an epoch."""
        return self.epochs > 0 and epoch % self.epochs == 0


class Clock:
    """Keeps the time of the checks apart from that of the training."""

    def __init__(self) -> None:
        self.checking = 0.0
        self._last = 0.0
        self._began: float | None = None

    def start(self) -> None:
        """Begin to count, once."""
        if self._began is None:
            self._began = time.perf_counter()

    @property
    def training(self) -> float:
        """Seconds since the start that were not spent on checks."""
        return 0.0 if self._began is None else time.perf_counter() - self._began - self.checking

    def spent(self, seconds: float) -> None:
        """Note what a check took."""
        self.checking += seconds
        self._last = seconds

    def affords(self, share: float) -> bool:
        """Whether a check as long as the last one keeps all of them within a share of the training time."""
        return self.checking + self._last <= share * self.training


_MODES = ("same", "eval")


class AlignmentTracker:
    r"""Looks at the data-architecture alignment of a model now and then while it is trained, and leaves it alone.

    At each check: the verdict of Definition 2 for every rank rule, rank and rho at its tolerance, singular values near
    it, :math:`\|M(\theta^t) - M(\theta^0)\|_F^2`, loss and error on X and Y. Parameters, gradients, buffers, modes,
    hooks and the random states of torch, NumPy and Python are as before; a run is the same to the last bit with the
    tracker and without.

    Parameters
    ----------
    model : torch.nn.Module
        The model that is being trained; its outputs are the values before the last nonlinearity (logits).
    X : torch.Tensor or numpy.ndarray
        Inputs that the question is about, one sample a row: the training data, or a part of them. Copied.
    Y : array
        Targets, in a form that the loss takes.
    loss : str
        ``"squared"``, ``"binary_cross_entropy"`` or ``"cross_entropy"``.
    every : int or str
        ``10`` or ``"10 steps"``; ``"epoch"`` or ``"5 epochs"`` (for loops that call :meth:`end_epoch`, as the callbacks
        do); ``"5%"``: as often as checks take at most that share of the training's own time. The first call is checked
        in any case.
    rules : sequence of str
        Rank rules; ``"press"`` and ``"golub"`` are the paper's.
    mode : {"same", "eval"}
        BatchNorm and Dropout have no Jacobian row by row in train mode, and are refused. ``"eval"`` looks at the
        network as it would be in eval mode, and puts every module's mode back.
    dtype, residual_tolerance
        As in :func:`alignver.check_alignment`.
    thorough : bool
        Singular values, and with them the rank, at every check. By default they are computed where they are cheap, or
        where nothing else decides.
    change : {"auto", "exact", "probes", "off"}
        How the change of the representation is computed: :class:`alignver.RepresentationSnapshot`.
    start : mapping of str to torch.Tensor, optional
        theta^0 as a state dict, for a run that is taken up again; by default what the model has now.
    structure : bool or sequence of str
        Check Assumption 1 at every check, for the parameters named or, with True, those that
        :func:`alignver.check_common_structure` finds now.
    theorem_3 : mapping, optional
        ``{"lipschitz": L, "rate": step size, "eta": 1.0}``: follow the bound of Theorem 3. It needs ``structure``, and
        is about gradient descent on X and Y with a constant step below 2 / L, all of which is the caller's word.
    path : path, optional
        File of JSON lines that every check is appended to as it is made.
    resume : bool
        Go on with the file that is there.

    Attributes
    ----------
    history : History
        Records of all checks.
    step, epoch : int
        Optimiser steps and epochs counted up to now.

    Raises
    ------
    InvalidInput
        Everything that :func:`alignver.check_alignment` refuses; an option out of its range; a file that does not fit.

    Notes
    -----
    Rigor: NUMERICAL, see :mod:`alignver.checks.alignment_evaluator`. A check that cannot be made (NaN parameters of
    a run that diverged) is recorded as UNDECIDED, with the reason; it does not end the training.

    Source: Kawaguchi, Zhang, Deng (2022), Section 2.2 and equation (7).

    Examples
    --------
    >>> torch.manual_seed(0) and None
    >>> X, Y = torch.randn(20, 2), torch.arange(20) % 2
    >>> net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> tracker = AlignmentTracker(net, X, Y, loss="cross_entropy", every=5)
    >>> for _ in range(10):
    ...     _ = tracker.update()  # theta^t, before step t + 1
    ...     optimizer.zero_grad()
    ...     nn.functional.cross_entropy(net(X), Y).backward()
    ...     optimizer.step()
    >>> tracker.update().reason  # theta^10
    'Gram matrix'
    >>> tracker.q(), [record.step for record in tracker.history]
    ({'press': (0, 0), 'golub': (0, 0)}, [0, 5, 10])
    """

    def __init__(
        self,
        model: nn.Module,
        X: Any,
        Y: Any,
        *,
        loss: str,
        every: int | str = 1,
        rules: Sequence[str] = ("press", "golub"),
        mode: str = "same",
        dtype: str | None = "float64",
        residual_tolerance: float | None = None,
        thorough: bool = False,
        change: str = "auto",
        start: Mapping[str, torch.Tensor] | None = None,
        structure: bool | Sequence[str] = False,
        theorem_3: Mapping[str, float] | None = None,
        path: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> None:
        self.schedule = Schedule.of(every)
        _require(mode, change, rules)
        if residual_tolerance is not None:
            rank_rules.checked_tolerance(residual_tolerance, "residual_tolerance")
        self.model, self.loss, self._mode, self._dtype, self._change = model, loss, mode, dtype, change
        with self._watching():
            asked = prepare_alignment(model, X, Y, loss, dtype)
            self.model = asked.model
            self.x = as_inputs(X, asked.x.device).clone()
            asked = dataclasses.replace(asked, x=asked.x.clone() if asked.merged else self.x)
            self.lookout = AlignmentEvaluator(
                asked, rules=rules, dtype=dtype, limit=residual_tolerance, thorough=thorough
            )
            self._counts = np.sqrt(np.bincount(asked.duplicates.position)) if asked.merged else None
            self._premises = Theorem3Conditions.of(self.lookout, structure, theorem_3, asked.given, loss)
        self._sample_loss = sample_loss(loss, asked.m_y)
        self._y = self._sample_loss.targets(asked.given, len(self.x), asked.m_y)
        self.clock, self.step, self.epoch = Clock(), -1, 0
        self._start: Any = None
        config = self._config(asked)
        self._file = None if path is None else HistoryFile(path, config, resume=resume)
        self.history = History((), config) if self._file is None else self._file.history
        if len(self.history):
            self.step, self.epoch = self.history[-1].step, self.history[-1].epoch
            self._premises.replay(self.history)
        self._begin(start)

    def update(self, step: int | None = None) -> Record | None:
        """Count a step, and check if one is due: theta^0 at the first call, theta^t at call t + 1.

        Parameters
        ----------
        step : int, optional
            t, for callers that count themselves.

        Returns
        -------
        Record or None
            None if no check was due.
        """
        self.clock.start()
        last, self.step = self.step, self.step + 1 if step is None else step
        first = not len(self.history)
        return self.check() if first or self.schedule.due_at_step(last, self.step, self.clock) else None

    def end_epoch(self) -> Record | None:
        """Count an epoch, and check if one is due; the step stays what it is."""
        self.clock.start()
        self.epoch += 1
        return self.check() if self.schedule.due_at_epoch(self.epoch, self.clock) else None

    def check(self) -> Record:
        """Check now; once for each step, a second call returns the first one's record."""
        self.clock.start()
        self.step = max(self.step, 0)
        if len(self.history) and self.history[-1].step == self.step:
            found: Record = self.history[-1]
            return found
        if self.x.device.type == "cuda":
            torch.cuda.synchronize(self.x.device)  # what the training has queued is not the check's time
        training, began = self.clock.training, time.perf_counter()
        with self._watching():
            record = self._record(began, training)
        if self._file is None:
            self.history.append(record)
        else:
            self._file.append(record)
        self.clock.spent(time.perf_counter() - began)
        return record

    def q(self) -> dict[str, tuple[int, int]]:
        """Return Q_T for each rule as an interval: FAILS counted, and UNDECIDED counted with them."""
        return self.history.q()

    def sync(self) -> None:
        """Make sure that every record is on the disk; between records, the last second may not be."""
        if self._file is not None:
            self._file.sync()

    def _record(self, began: float, training: float) -> Record:
        known: dict[str, Any] = {"step": self.step, "epoch": self.epoch, "training_seconds": training}
        try:
            look = self.lookout.look()
            known |= self._read(look)
        except InvalidInput as refused:  # a run that diverged; the training is not ours to end
            nothing = {"verdict": Verdict.UNDECIDED.value, "tolerance": None, "residual": None}
            known |= {
                "rules": {rule: {**nothing, "rank": None, "near": None} for rule in self.lookout.rules},
                "reason": f"no check: {refused}",
            }
        return Record(**known, seconds=time.perf_counter() - began, time=time.time())

    def _read(self, look: AlignmentEvaluation) -> dict[str, Any]:
        names = ("verdict", "tolerance", "residual", "rank", "near")
        q, y = look.outputs, self._y
        known: dict[str, Any] = {
            "rules": {rule: {name: answer.get(name) for name in names} for rule, answer in look.answers.items()},
            "reason": ", then ".join(look.ways),
            "loss": math.fsum(self._sample_loss.values(q, y).tolist()) / len(q),
            "error": _error(q, y, self.loss),
            "largest": look.spectral,
            "smallest": look.smallest,
            "change": self._changed(look),
        }
        return known | self._premises.read(look, self.step, float(known["loss"]))

    def _changed(self, look: AlignmentEvaluation) -> dict[str, Any] | None:
        if self._start is None:
            return None
        if isinstance(self._start, RepresentationSnapshot):
            found = self._start.change()
            return {
                "value": found.value,
                "interval": found.interval,
                "confidence": found.confidence,
                "rigor": found.rigor.value,
            }
        M = look.gram
        if M is None:  # it did not fit this time: what else has come to memory since the first check
            return None
        value = squared_distance(self._of_all(torch.from_numpy(M)), self._start)
        return {"value": value, "interval": (value, value), "confidence": 1.0, "rigor": "NUMERICAL"}

    def _begin(self, start: Mapping[str, torch.Tensor] | None) -> None:
        """Keep theta^0 in the form that changes are measured from; the matrix, where looks make one anyway."""
        resumed = len(self.history) > 0
        if self._change == "off" or (resumed and start is None):
            return
        with self._watching():
            if self._change != "probes" and self.lookout.forms_gram():
                M = gram(self.model, self.lookout.asked.x, state=start, dtype=self._dtype)
                self._start = self._of_all(M.double().cpu())
                return
            self._start = RepresentationSnapshot(
                self.model, self.x, state=start, method=self._change, dtype=self._dtype
            )

    def _of_all(self, M: torch.Tensor) -> torch.Tensor:
        """Weigh the Gram matrix of the distinct samples so that its norms are those of the whole one."""
        if self._counts is None:
            return M
        weights = torch.from_numpy(np.tile(self._counts, self.lookout.m_y))
        return M * weights[:, None] * weights[None, :]

    def _config(self, asked: PreparedAlignment) -> dict[str, Any]:
        """What decides the meaning of the records; how often there are some does not."""
        return {
            "loss": self.loss,
            "rules": list(self.lookout.rules),
            "mode": self._mode,
            "computed_in": self.lookout.computed_in,
            "residual_tolerance": self.lookout.limit,
            "n": len(self.x),
            "m_y": self.lookout.m_y,
            "d": self.lookout.d,
            "model": type(self.model).__name__,
            "data": _digest(self.x, asked.of_all(asked.targets)),
        }

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Put back what a forward pass may touch outside of the model, and the modes, if we set them."""
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the caller's, to be put back
        modes = [(m, m.training) for m in self.model.modules()] if isinstance(self.model, nn.Module) else []
        try:
            if self._mode == "eval":
                for module, _ in modes:
                    module.training = False  # not eval(): a model may do more there
            yield
        except InvalidInput as error:
            if self._mode == "same" and "eval mode" in error.need:
                need = f"{error.need}; or mode='eval', to look at the network as it would be there"
                raise InvalidInput(error.argument, error.got, need) from error
            raise
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _error(q: Any, y: Any, loss: str) -> float | None:
    """Return the share of wrong outputs: labels, or entries where there may be several; None for the squared loss."""
    if loss == "squared":
        return None
    if q.shape[1] > 1 and loss == "cross_entropy":
        return float(np.mean(q.argmax(1) != y.argmax(1)))
    return float(np.mean((q > 0.0) != (y > 0.5)))


def _digest(x: torch.Tensor, targets: Any) -> str:
    found = hashlib.sha256()
    for part in ((x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy(), targets):
        found.update(f"{part.dtype}{part.shape}".encode())
        found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def _require(mode: str, change: str, rules: Sequence[str]) -> None:
    if mode not in _MODES:
        raise InvalidInput("mode", repr(mode), "one of " + ", ".join(_MODES))
    if change not in (*METHODS, "off"):
        raise InvalidInput("change", repr(change), "one of " + ", ".join((*METHODS, "off")))
    if isinstance(rules, str) or not rules or len(set(rules)) != len(rules):
        raise InvalidInput("rules", repr(rules), "names of rank rules, at least one, each once")
    for rule in rules:
        # an operator has no entries and no trailing norms
        if rank_rules.find(rule).levels != "singular values" or rule == "golub-inf":
            raise InvalidInput("rules", repr(rule), "rules on singular values that need no entries: 'press', 'golub'")
