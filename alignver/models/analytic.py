"""Is a model real analytic in its parameters (Assumption 6)? By inspection of its modules and their operations."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn

from alignver.errors import InvalidInput, first_line
from alignver.models import analytic_operations as known
from alignver.models.guard import unchanged
from alignver.results import CheckResult, Rigor, Subject, Verdict

__all__ = ["check_analytic"]

_SHOWN = 6
_SOURCES = ("torch", "_operator", "operator", "builtins", "math")


@dataclasses.dataclass(frozen=True)
class _Finding:
    """One thing that was seen: where, what, its kind ("broken", "partly", "rounded", "unclear") and why."""

    where: str
    what: str
    kind: str
    why: str

    def __str__(self) -> str:
        where = f" {self.where!r}" if self.where else ""
        return f"{self.what}{where}" + (f" {self.why}" if self.kind != "rounded" else "")


def check_analytic(model: nn.Module) -> CheckResult:
    """Check whether a model's outputs are real analytic functions of its parameters.

    Every operation between a trainable parameter and the output is looked at: known modules by type, the code of others
    through ``torch.fx``. ReLU and its relatives, max pooling, abs, sign, rounding, clamping and comparisons are not
    analytic; quotients, logarithms and roots of what depends on the parameters are so only in part.

    Parameters
    ----------
    model : torch.nn.Module
        Not run on data, and left as it was. Pass the part up to layer H - 2 for the paper's z; its gate is a sigmoid.

    Returns
    -------
    CheckResult
        HOLDS: nothing else was seen, and everything was seen. FAILS: an operation that is not analytic acts on what
        depends on the parameters; ``witness`` names each with where it stands. UNDECIDED: something is analytic in part
        only, is not known, or could not be traced (control flow on data, forward hooks, code in other languages).

    Raises
    ------
    InvalidInput
        Not a torch.nn.Module, or one that was scripted.

    Notes
    -----
    Rigor: NUMERICAL, for want of a certificate: the inspection is of code, by a table of what is known about torch. A
    composition with something not analytic can be analytic by accident (the ReLU of a square); FAILS does not look for
    that.

    The verdict is about the mathematical function, which no float program computes exactly. torch's softplus is
    the identity above ``beta x > threshold``; at the default threshold of 20 it departs from
    ``ln(1 + e^(beta x)) / beta`` by 2e-9 / beta at most and passes for it, with a word in the evidence; with a lower
    threshold it fails.

    References
    ----------
    Kawaguchi, Zhang, Deng (2022), Assumption 6.

    Examples
    --------
    >>> from torch import nn
    >>> check_analytic(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))).verdict
    <Verdict.HOLDS: 'HOLDS'>
    >>> bent = check_analytic(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    >>> print(bent.verdict, "-", bent.reason)
    FAILS - not analytic in the parameters: ReLU '1' bends
    """
    began = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise InvalidInput("model", f"a {type(model).__name__}", "a torch.nn.Module")
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, torch.jit.ScriptModule):
        got = f"a {type(model).__name__}"
        raise InvalidInput("model", got, "the torch.nn.Module that it was scripted or traced from")
    with unchanged(model):
        seen, findings = _inspect(model)
    return _result(seen, findings, time.perf_counter() - began)


def _inspect(model: nn.Module) -> tuple[int, list[_Finding]]:
    """Return how many operations were looked at, and what was found."""
    hooked = [
        _Finding(name, type(module).__name__, "unclear", "has forward hooks, which are not traced")
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]
    if type(model) in known.LEAVES:
        return 1, [*hooked, *_judged("", model)]
    try:
        with _len_recorded(model):
            graph = _Tracer().trace(model)
    except Exception as error:  # tracing runs the user's code on proxies: it can raise anything
        findings = [_Finding("", type(model).__name__, "unclear", f"cannot be traced ({first_line(error)})")]
        for name, module in model.named_modules():
            if type(module) in known.LEAVES:
                # It is there; whether and on what it runs was not seen.
                findings += [
                    dataclasses.replace(f, kind="unclear", why=f.why + ", if it is used")
                    for f in _judged(name, module)
                    if f.kind != "rounded"
                ]
        return 0, hooked + findings
    return len(graph.nodes), hooked + _walk(model, graph)


class _Tracer(fx.Tracer):
    """Trace through everything but the modules that are known."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is judged as a whole."""
        return type(m) in known.LEAVES


@contextlib.contextmanager
def _len_recorded(model: nn.Module) -> Iterator[None]:
    """Let the code of the modules call len on what is traced, which Python itself would not allow."""

    def length(value: Any) -> Any:
        return (
            value.tracer.create_proxy("call_function", len, (value,), {}) if isinstance(value, fx.Proxy) else len(value)
        )

    places = {id(names): names for module in model.modules() for names in [_globals(module)] if "len" not in names}
    for names in places.values():
        names["len"] = length
    try:
        yield
    finally:
        for names in places.values():
            del names["len"]


def _globals(module: nn.Module) -> dict[str, Any]:
    names = getattr(type(module).forward, "__globals__", {"len": len})
    library = str(names.get("__name__", "")).partition(".")[0] == "torch"
    return {"len": len} if library else names


def _walk(model: nn.Module, graph: fx.Graph) -> list[_Finding]:
    """Follow what depends on a trainable parameter through the graph, and judge every operation on it."""
    moving: set[fx.Node] = set()
    findings: list[_Finding] = []
    for node in graph.nodes:
        operands = node.all_input_nodes
        depends = any(operand in moving for operand in operands)
        if node.op == "get_attr":
            value: Any = operator.attrgetter(node.target)(model)
            if isinstance(value, nn.Parameter) and value.requires_grad:
                moving.add(node)
        elif node.op == "call_module":
            module = model.get_submodule(str(node.target))
            linear = isinstance(module, nn.PReLU)  # in its parameter
            if depends or (any(p.requires_grad for p in module.parameters()) and not linear):
                findings += _judged(str(node.target), module)
            if depends or any(p.requires_grad for p in module.parameters()):
                moving.add(node)
        elif node.op in ("call_function", "call_method") and depends:
            moving.add(node)
            finding = _operation(model, node, moving)
            if finding is not None:
                findings.append(finding)
    return list(dict.fromkeys(findings))


def _judged(name: str, module: nn.Module) -> list[_Finding]:
    kind, why = known.of_module(module)
    if kind == "analytic":
        return []
    if kind == "partly":
        why = f"is analytic only {why}"
    return [_Finding(name, type(module).__name__, kind, why)]


def _operation(model: nn.Module, node: fx.Node, moving: set[fx.Node]) -> _Finding | None:
    """Judge a function or method whose operands depend on the parameters."""
    where, name = _where(model, node), _name(node)

    def found(kind: str, why: str) -> _Finding:
        return _Finding(where, f"{name} in", kind, why) if where else _Finding("", f"{name} in forward", kind, why)

    arguments = [*node.args, *node.kwargs.values()]
    if not _from_torch(node):
        return found("unclear", "is not known")
    if name == "getattr":
        known_attribute = str(node.args[1]) in {"shape", "dtype", "device", "ndim", "T", "mT", "H", "real", "is_cuda"}
        return None if known_attribute else found("unclear", f"reads {node.args[1]!r}, which is not known")
    if name in ("where", "masked_fill", "masked_select"):
        condition = node.args[0] if name == "where" else _argument(node, 1, "mask")
        return found("broken", "chooses by a comparison") if condition in moving else None
    if name in ("truediv", "div", "divide", "itruediv", "true_divide"):
        return found("partly", "divides by what depends on the parameters") if arguments[1] in moving else None
    if name in ("pow", "ipow"):
        exponent = _argument(node, 1, "exponent")
        whole = isinstance(exponent, int) or (isinstance(exponent, float) and exponent.is_integer())
        fine = whole and isinstance(exponent, int | float) and exponent >= 0
        return None if fine else found("partly", "is analytic only where the base is positive")
    if name == "softplus":
        beta, threshold = _argument(node, 1, "beta", 1.0), _argument(node, 2, "threshold", known.SOFTPLUS_THRESHOLD)
        if isinstance(beta, int | float) and isinstance(threshold, int | float):
            kind, why = known.of_softplus(float(beta), float(threshold))
            return found(kind, why)
        return found("unclear", "has a threshold that is not a number")
    if name in ("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm"):
        eps = node.kwargs.get("eps", 1e-5)
        fine = isinstance(eps, int | float) and eps > 0
        if name == "batch_norm" and node.kwargs.get("training", False):
            return found("unclear", "uses the statistics of the batch")
        return None if fine else found("partly", "is analytic only where the variance is not zero, its eps being 0")
    if name.endswith("dropout"):
        random = _argument(node, 2, "training", True)
        return found("unclear", "is random in train mode: model.eval()") if random else None
    if name in known.BROKEN:
        return found("broken", known.BROKEN[name])
    if name in known.PARTLY:
        return found("partly", f"is analytic only {known.PARTLY[name]}")
    return None if name in known.ANALYTIC else found("unclear", "is not known")


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _name(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.strip("_") if name != "_" else name


def _from_torch(node: fx.Node) -> bool:
    """Whether a function is torch's or Python's own; a method is taken to be a tensor's."""
    if node.op == "call_method":
        return True
    home = getattr(node.target, "__module__", None) or "torch"  # builtins of torch have none
    return str(home).partition(".")[0] in _SOURCES


def _where(model: nn.Module, node: fx.Node) -> str:
    """Path and class of the module whose forward runs the operation; empty for the model's own."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    return path


def _result(seen: int, findings: list[_Finding], seconds: float) -> CheckResult:
    broken = [f for f in findings if f.kind == "broken"]
    unclear = [f for f in findings if f.kind in ("partly", "unclear")]
    rounded = [f for f in findings if f.kind == "rounded"]
    if broken:
        verdict, reason = Verdict.FAILS, f"not analytic in the parameters: {_listed(broken)}"
    elif unclear:
        verdict, reason = Verdict.UNDECIDED, f"not established: {_listed(unclear)}"
    else:
        verdict, reason = Verdict.HOLDS, f"every operation on the parameters is analytic ({seen} looked at)"
    evidence = []
    if broken and unclear:
        evidence.append(f"and not established: {_listed(unclear)}")
    if rounded:
        worst = max(float(f.why) for f in rounded)
        evidence.append(
            f"softplus ({len(rounded)} of them): taken for ln(1 + e^(beta x)) / beta, from which torch departs by at "
            f"most {worst:.1e}, where it switches to x"
        )
    evidence.append("by inspection of modules and traced code, not by a proof that can be re-checked")
    listed = {
        kind: [{"where": f.where, "what": f.what, "why": f.why} for f in some]
        for kind, some in (("broken", broken), ("unclear", unclear), ("rounded", rounded))
    }
    return CheckResult(
        name="analytic",
        statement="Real analytic in the parameters (Assumption 6)",
        verdict=verdict,
        rigor=Rigor.NUMERICAL,
        subject=Subject.NETWORK,
        code="analytic-inspected" if verdict is Verdict.HOLDS else "analytic-broken" if broken else "analytic-unknown",
        next_steps=("replace what is not analytic: softplus for ReLU, tanh for hardtanh",) if broken else (),
        reason=reason,
        evidence=tuple(evidence),
        measured={"operations": seen, **listed},
        witness={"operations": listed["broken"]} if broken else None,
        cost={"seconds": seconds},
    )


def _listed(findings: Iterable[_Finding]) -> str:
    words = [str(finding) for finding in findings]
    more = len(words) - _SHOWN
    return "; ".join(words[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
