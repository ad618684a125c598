"""Alignment along a training run: Q_T, the change of the representation, rank and residual (Section 2.2).

A schedule decides when a check is made: every k steps, every k epochs, or within a share of the training time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver import require
from alignver.checks.alignment import prove_about_network
from alignver.checks.alignment_evaluator import AlignmentEvaluation, AlignmentEvaluator
from alignver.errors import InvalidInput, first_line, renamed
from alignver.jacobians.gram import gram
from alignver.jacobians.kernel_distance import METHODS, RepresentationSnapshot, squared_distance
from alignver.jacobians.prepare import PreparedAlignment, prepare_alignment
from alignver.limits import in_memory
from alignver.linalg import rank_rules
from alignver.network.preserve_state import eval_mode, preserve_random_states
from alignver.report.history import History, HistoryFile, Record, require_same_config
from alignver.results import Verdict, plain
from alignver.theory.losses import sample_loss
from alignver.training.theorem3_conditions import Theorem3Conditions

_NEED = "a number of steps (10), of epochs ('epoch', '5 epochs'), or a share of the training time ('5%')"
_WORDS = re.compile(r"(?:(\d+) +)?(step|epoch)s?")
_MODES = ("same", "eval")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The interval between checks, in steps, in epochs or as a share of the training time; the other two are 0.

    Attributes
    ----------
    steps, epochs : int
        Number of steps or epochs from one check to the next.
    share : float
        Share of the training time that the checks may take.

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
        """Parse the argument ``every`` of a tracker.

        Raises
        ------
        InvalidInput
            A value other than a positive number of steps or epochs, or a share above 0 %.
        """
        if not isinstance(every, str):
            return cls(steps=require.integer("every", every, least=1, need=_NEED))
        text = every.strip().lower()
        if text.endswith("%"):
            with contextlib.suppress(ValueError):
                share = float(text[:-1]) / 100.0
                if 0.0 < share < math.inf:
                    return cls(share=share)
        match = _WORDS.fullmatch(text)
        count = int(match.group(1) or 1) if match else 0
        if match is None or count < 1:
            raise InvalidInput("every", f"every={every!r}", _NEED)
        return cls(steps=count) if match.group(2) == "step" else cls(epochs=count)

    def due_at_step(self, last: int, step: int, clock: Clock) -> bool:
        """Whether a check is due at ``step``, where ``last`` is the previous step."""
        if self.steps:
            return step // self.steps > last // self.steps
        return self.share > 0.0 and clock.within_share(self.share)

    def due_at_epoch(self, epoch: int, clock: Clock) -> bool:
        """Whether a check is due at the end of an epoch."""
        return self.epochs > 0 and epoch % self.epochs == 0


class Clock:
    """Measures the time of the checks and that of the training separately."""

    def __init__(self) -> None:
        self.checking = 0.0
        self._last = 0.0
        self._began: float | None = None

    def start(self) -> None:
        """Start the clock at the first call."""
        if self._began is None:
            self._began = time.perf_counter()

    @property
    def training(self) -> float:
        """Seconds since the start that were not spent on checks."""
        return 0.0 if self._began is None else time.perf_counter() - self._began - self.checking

    def add_check(self, seconds: float) -> None:
        """Add the duration of a check."""
        self.checking += seconds
        self._last = seconds

    def within_share(self, share: float) -> bool:
        """Whether the total time of the checks, with one more like the last, is within a share of the training time."""
        return self.checking + self._last <= share * self.training


class AlignmentTracker:
    r"""Checks the data-architecture alignment of a model at intervals during training, without changing the model.

    Each check gives the verdict of Definition 2 for every rank rule, rank and rho at its tolerance, singular values
    near it, :math:`\|M(\theta^t) - M(\theta^0)\|_F^2`, and loss and error on X and Y. Parameters, gradients, buffers,
    modes, hooks and the random states of torch, NumPy and Python are preserved; a run with the tracker is bit-identical
    to one without.

    Parameters
    ----------
    model : torch.nn.Module
        The model that is being trained; its outputs are the values before the last nonlinearity (logits).
    X : array, Dataset or DataLoader
        Inputs of the check, as :func:`alignver.check_alignment` takes them: the training data, or a part of them, in a
        fixed order. Copied.
    Y : array, optional
        Targets, in a form that the loss accepts; by default those in X.
    loss : str
        ``"squared"``, ``"binary_cross_entropy"`` or ``"cross_entropy"``.
    every : int or str
        ``10`` or ``"10 steps"``; ``"epoch"`` or ``"5 epochs"`` (for loops that call :meth:`end_epoch`, as the callbacks
        do); ``"5%"``: as often as possible while the checks take at most that share of the training time. The first
        call always makes a check.
    rules : sequence of str
        Rank rules; ``"press"`` and ``"golub"`` are the paper's.
    mode : {"same", "eval"}
        In train mode BatchNorm couples the samples and Dropout is random: both are refused. ``"eval"`` checks the
        network in eval mode, and restores the mode of every module.
    dtype, residual_tolerance
        As in :func:`alignver.check_alignment`.
    thorough : bool
        Compute singular values, and with them the rank, at every check. By default they are computed where they are
        cheap, or where the other methods do not decide.
    change : {"auto", "exact", "probes", "off"}
        Method for the change of the representation: :class:`alignver.RepresentationSnapshot`.
    start : mapping of str to torch.Tensor, optional
        theta^0 as a state dict, for a run that is resumed; by default the current parameters of the model.
    structure : bool or sequence of str
        Check Assumption 1 at every check, for the parameters named or, with True, those that
        :func:`alignver.check_common_structure` finds now.
    theorem_3 : mapping, optional
        ``{"lipschitz": L, "rate": step size, "eta": 1.0}``: compute the bound of Theorem 3. It needs ``structure``, and
        is about gradient descent on X and Y with a constant step below 2 / L; these conditions are not verified.
    network_at : sequence of int
        Steps at which the alignment of the network itself is proved too, with kappa
        (:func:`alignver.check_alignment`): ``record.network``.
    path : path, optional
        File of JSON lines, in an existing folder, to which every check is appended.
    resume : bool
        Continue an existing file.
    step, epoch : int
        Steps and epochs that were done before, for a training that is resumed. Without ``start``, theta^0 is not known
        then, and the change of the representation is not measured.

    Attributes
    ----------
    history : History
        Records of all checks.
    step, epoch : int
        Optimiser steps and epochs counted up to now.

    Raises
    ------
    InvalidInput
        Every input that :func:`alignver.check_alignment` refuses; an option out of its range; a file of another
        configuration.

    Notes
    -----
    Rigor: NUMERICAL, see :mod:`alignver.checks.alignment_evaluator`. A check that cannot be made (NaN parameters of
    a run that diverged, no memory, any error) is recorded as UNDECIDED, with the reason; the training continues.

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

    @in_memory
    def __init__(
        self,
        model: nn.Module,
        X: Any,
        Y: Any = None,
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
        network_at: Sequence[int] = (),
        path: str | os.PathLike[str] | None = None,
        resume: bool = False,
        step: int = 0,
        epoch: int = 0,
    ) -> None:
        self.schedule = Schedule.of(every)
        _require(mode, change, rules)
        require.booleans(thorough=thorough, resume=resume)
        steps: Any = network_at
        if not isinstance(steps, Iterable):
            raise InvalidInput("network_at", repr(steps), "steps, such as [0, 1000]", "wrong-type")
        self._network_at = {require.integer("network_at", step, least=0) for step in steps}
        if residual_tolerance is not None:
            rank_rules.checked_tolerance(residual_tolerance, "residual_tolerance")
        before = require.integer("step", step, least=0), require.integer("epoch", epoch, least=0)
        self.loss, self._mode, self._dtype, self._change = loss, mode, dtype, change
        self._options: dict[str, Any] = {
            "rules": rules,
            "dtype": dtype,
            "limit": residual_tolerance,
            "thorough": thorough,
        }
        self._premises = structure, theorem_3
        config = self._watch(model, X, Y)
        self._given = self.evaluator.prepared.given
        self.clock, self.step, self.epoch = Clock(), before[0] - 1, before[1]
        self._run, self._first = 0, True
        self._start: Any = None
        if resume and path is None:
            need = "path=, the file to continue"
            raise InvalidInput("resume", "resume=True without path", need, "conflicting-arguments")
        self._file = None if path is None else HistoryFile(path, config, resume=resume)
        self.history = History((), config) if self._file is None else self._file.history
        if len(self.history):
            last = self.history[-1]
            self._run, self._first = last.run, False
            self.step, self.epoch = (last.step, last.epoch) if not before[0] else (self.step, self.epoch)
            self._conditions.replay([record for record in self.history if record.run == self._run])
        self._begin(start, known=before[0] == 0 and not len(self.history))

    def restart(self, model: nn.Module, *, step: int = 0, epoch: int = 0) -> None:
        """Watch another training: of another model, or of the same one anew; its records follow in the history.

        theta^0 is the present theta of the model, unless ``step`` says that the training is resumed.

        Parameters
        ----------
        model : torch.nn.Module
            With the outputs of the first one.
        step, epoch : int
            Steps and epochs that were done before.

        Raises
        ------
        InvalidInput
            As for a new tracker; with a file, a model of another class or size.
        """
        before = require.integer("step", step, least=0), require.integer("epoch", epoch, least=0)
        config = self._watch(model, self.x, self._given)
        if self._file is not None:
            require_same_config(self.history.config, plain(config), self._file.path)
        elif plain(config) != self.history.config:
            self.history = History((), config)
        self.clock, self.step, self.epoch = Clock(), before[0] - 1, before[1]
        self._run, self._first, self._start = self._run + 1, True, None
        self._begin(None, known=before[0] == 0)

    @property
    def begun(self) -> bool:
        """Whether the first theta of the run was checked."""
        return not self._first

    def replace_model(self, model: nn.Module) -> None:
        """Watch another object that continues the same run: a model that the trainer rebuilt.

        The change of the representation is measured from theta^0 as before, or no longer if that needs the old model.
        """
        self._watch(model, self.x, self._given)
        self._conditions.replay([record for record in self.history if record.run == self._run])
        if isinstance(self._start, RepresentationSnapshot):
            self._start = None

    def watches(self, model: nn.Module) -> bool:
        """Whether the parameters of a model are those that the tracker watches."""
        watched = {id(parameter) for parameter in self.model.parameters()}
        return model is self.model or {id(parameter) for parameter in model.parameters()} == watched

    def _watch(self, model: nn.Module, X: Any, Y: Any) -> dict[str, Any]:
        """Prepare the checks of a model; return the settings that determine the records."""
        structure, theorem_3 = self._premises
        self.model = model
        with self._preserved():
            prepared = prepare_alignment(model, X, Y, self.loss, self._dtype)
            self.model = prepared.model
            self.x, self.loss = prepared.inputs.clone(), prepared.loss
            prepared = dataclasses.replace(prepared, x=prepared.x.clone() if prepared.merged else self.x)
            self._distinct = prepared.x
            self.evaluator = AlignmentEvaluator(prepared, **self._options)
            self._counts = np.sqrt(np.bincount(prepared.duplicates.position)) if prepared.merged else None
            self._conditions = Theorem3Conditions.of(prepared, structure, theorem_3, self.loss)
        self._sample_loss = sample_loss(self.loss, prepared.m_y)
        self._y = self._sample_loss.targets(prepared.given, len(self.x), prepared.m_y)
        return self._config(prepared)

    def update(self, step: int | None = None) -> Record | None:
        """Count a step, and make a check if one is due: theta^0 at the first call, theta^t at call t + 1.

        Parameters
        ----------
        step : int, optional
            t >= 0, for callers that count the steps themselves.

        Returns
        -------
        Record or None
            None if no check was due.

        Raises
        ------
        InvalidInput
            If the step is not a non-negative integer; the step count is then as before.
        """
        self.clock.start()
        step = self.step + 1 if step is None else require.integer("step", step, least=0)
        last, self.step = self.step, step
        return self.check() if self._first or self.schedule.due_at_step(last, self.step, self.clock) else None

    def end_epoch(self) -> Record | None:
        """Count an epoch, and make a check if one is due; the step count does not change."""
        self.clock.start()
        self.epoch += 1
        return self.check() if self.schedule.due_at_epoch(self.epoch, self.clock) else None

    def check(self) -> Record:
        """Make a check now; a second call at the same step returns the record of the first."""
        self.clock.start()
        self.step = max(self.step, 0)
        if not self._first and self.history[-1].step == self.step:
            last: Record = self.history[-1]
            return last
        if self.x.device.type == "cuda":
            torch.cuda.synchronize(self.x.device)  # queued work of the training is not time of the check
        training, began = self.clock.training, time.perf_counter()
        with self._preserved():
            record = self._record(began, training)
        (self._file or self.history).append(record)
        self._first = False
        self.clock.add_check(time.perf_counter() - began)
        return record

    def q(self) -> dict[str, tuple[int, int]]:
        """Return Q_T for each rule as an interval: the number of FAILS, and that of FAILS and UNDECIDED."""
        return self.history.q()

    def sync(self) -> None:
        """Write every record to the disk; without this call, the records of the last second may be missing."""
        if self._file is not None:
            self._file.sync()

    def _record(self, began: float, training: float) -> Record:
        fields: dict[str, Any] = {
            "step": self.step,
            "epoch": self.epoch,
            "training_seconds": training,
            "run": self._run,
        }
        try:
            fields |= self._fields(self.evaluator.evaluate())
        except Exception as caught:  # a run that diverged, no memory, a model that changed: the training continues
            error = (
                str(caught) if isinstance(caught, InvalidInput) else f"{type(caught).__name__}: {first_line(caught)}"
            )
            unknown = dict.fromkeys(("tolerance", "residual", "rank", "near"))
            answer = {"verdict": Verdict.UNDECIDED.value, **unknown}
            fields |= {"rules": {rule: dict(answer) for rule in self.evaluator.rules}, "reason": f"no check: {error}"}
        return Record(**fields, seconds=time.perf_counter() - began, time=time.time())

    def _fields(self, evaluation: AlignmentEvaluation) -> dict[str, Any]:
        names = ("verdict", "tolerance", "residual", "rank", "near")
        q, y = evaluation.outputs, self._y
        loss = math.fsum(self._sample_loss.values(q, y).tolist()) / len(q)
        return {
            "rules": {rule: {name: answer.get(name) for name in names} for rule, answer in evaluation.answers.items()},
            "reason": ", then ".join(evaluation.methods),
            "loss": loss,
            "error": _error(q, y, self.loss),
            "largest": evaluation.spectral,
            "smallest": evaluation.smallest,
            "change": self._changed(evaluation),
            **self._conditions.read(evaluation, loss),
            "network": self._network() if self.step in self._network_at else None,
        }

    def _network(self) -> dict[str, Any]:
        """Prove what is true of the network at the current parameters."""
        prepared = dataclasses.replace(self.evaluator.prepared, model=self.model, x=self._distinct)
        with eval_mode(self.model):
            proof = prove_about_network(prepared, self._dtype)
        if isinstance(proof, str):
            return {"verdict": Verdict.UNDECIDED.value, "kappa": None, "shuffled": None, "reason": proof}
        return {
            "verdict": proof.verdict.value,
            "kappa": proof.kappa,
            "shuffled": proof.shuffled,
            "reason": f"{proof.reason}, {proof.how}",
        }

    def _changed(self, evaluation: AlignmentEvaluation) -> dict[str, Any] | None:
        if isinstance(self._start, RepresentationSnapshot):
            change = self._start.change()
            return {
                "value": change.value,
                "interval": change.interval,
                "confidence": change.confidence,
                "rigor": change.rigor.value,
            }
        M = evaluation.gram
        if self._start is None or M is None:  # no theta^0, or M does not fit into the memory that is left now
            return None
        value = squared_distance(self._of_all(torch.from_numpy(M)), self._start)
        return {"value": value, "interval": (value, value), "confidence": 1.0, "rigor": "NUMERICAL"}

    def _begin(self, start: Mapping[str, torch.Tensor] | None, *, known: bool) -> None:
        """Store theta^0 in the form from which changes are measured: as the matrix M where the checks compute it.

        ``known``: whether theta^0 is the present theta, if no ``start`` is given.
        """
        if self._change == "off" or (not known and start is None):
            return
        with renamed({"state": "start"}), self._preserved():
            if self._change != "probes" and self.evaluator.forms_gram():
                M = gram(self.model, self._distinct, state=start, dtype=self._dtype)
                self._start = self._of_all(M.double().cpu())
                return
            self._start = RepresentationSnapshot(
                self.model, self.x, state=start, method=self._change, dtype=self._dtype
            )

    def _of_all(self, M: torch.Tensor) -> torch.Tensor:
        """Weight the Gram matrix of the distinct samples so that its norms are those of the matrix of all samples."""
        if self._counts is None:
            return M
        weights = torch.from_numpy(np.tile(self._counts, self.evaluator.m_y))
        return M * weights[:, None] * weights[None, :]

    def _config(self, prepared: PreparedAlignment) -> dict[str, Any]:
        """Return the settings that determine the records; the schedule does not."""
        return {
            "loss": self.loss,
            "rules": list(self.evaluator.rules),
            "mode": self._mode,
            "computed_in": self.evaluator.computed_in,
            "residual_tolerance": self.evaluator.limit,
            "n": len(self.x),
            "m_y": self.evaluator.m_y,
            "d": self.evaluator.d,
            "model": type(self.model).__name__,
            "data": _digest(self.x, prepared.of_all(prepared.targets)),
        }

    @contextlib.contextmanager
    def _preserved(self) -> Iterator[None]:
        """Restore the random states, and the modes, which ``mode="eval"`` sets."""
        evaluated = self._mode == "eval" and isinstance(self.model, nn.Module)
        try:
            with preserve_random_states(), eval_mode(self.model) if evaluated else contextlib.nullcontext():
                yield
        except InvalidInput as error:
            if self._mode == "same" and "eval mode" in error.need:
                need = f"{error.need}; or mode='eval', to check the network in eval mode"
                raise InvalidInput(error.argument, error.got, need, error.code) from error
            raise


def _error(q: Any, y: Any, loss: str) -> float | None:
    """Return the share of wrong labels, or of wrong entries for several binary targets; None for the squared loss."""
    if loss == "squared":
        return None
    if q.shape[1] > 1 and loss == "cross_entropy":
        return float(np.mean(q.argmax(1) != y.argmax(1)))
    return float(np.mean((q > 0.0) != (y > 0.5)))


def _digest(x: torch.Tensor, targets: Any) -> str:
    checksum = hashlib.sha256()
    for part in ((x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy(), targets):
        checksum.update(f"{part.dtype}{part.shape}".encode())
        checksum.update(np.ascontiguousarray(part).tobytes())
    return checksum.hexdigest()


def _require(mode: str, change: str, rules: Sequence[str]) -> None:
    require.one_of("mode", mode, _MODES)
    require.one_of("change", change, (*METHODS, "off"))
    need = "a list of names of rank rules, at least one, each once"
    rules = require.names("rules", rules, need)
    if not rules or len(set(rules)) != len(rules):
        raise InvalidInput("rules", repr(rules), need)
    for rule in rules:
        with renamed({"rule": "rules"}):
            known = rank_rules.find(rule)
        # An operator has no entries and no trailing norms.
        if known.levels != "singular values" or rule == "golub-inf":
            need = "rules on singular values that need no entries, such as 'press' and 'golub'"
            raise InvalidInput("rules", repr(rule), need)
