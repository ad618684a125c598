"""Is a model real analytic in its parameters (Assumption 6)? By inspection of its modules and their operations.

Analytic: polynomials, exp, sin, tanh, the logistic function, erf, and their sums, products and compositions (softmax,
GELU, SiLU, normalizations with eps > 0), and everything linear: convolution, average pooling, resampling, padding,
selection by positions that do not depend on the operand. Not analytic: functions that are given by several formulas
(ReLU, abs, max, rounding), even if they are smooth to some order, like ELU and softsign. Quotients, logarithms and
roots are analytic on a part of the line only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from alignver import require
from alignver.errors import InvalidInput, first_line, kind_of
from alignver.network.preserve_state import preserve_state
from alignver.results import CheckResult, Rigor, Subject, Verdict

__all__ = ["check_analytic"]

SOFTPLUS_THRESHOLD = 20.0
"""Default of torch: above it softplus returns its argument, which is ln(1 + e^-20) = 2e-9 less than ln(1 + e^20)."""

_SHOWN = 6  # findings that a sentence names
_SOURCES = ("torch", "_operator", "operator", "builtins", "math")


def _words(text: str) -> list[str]:
    return text.split()


ANALYTIC = frozenset(
    _words("""
    add iadd radd sub isub rsub subtract mul imul rmul multiply neg negative pos positive square matmul imatmul mm bmm
    addmm addmv baddbmm addbmm mv dot vdot inner outer einsum tensordot kron linear bilinear conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d embedding cat concat concatenate stack hstack vstack dstack
    flatten unflatten reshape view view_as reshape_as permute transpose swapaxes swapdims movedim t adjoint squeeze
    unsqueeze expand expand_as broadcast_to repeat repeat_interleave tile chunk split tensor_split unbind narrow select
    getitem index_select gather roll flip rot90 diag diagonal diag_embed tril triu unfold fold contiguous clone to float
    double type type_as mean sum nansum cumsum cumprod prod trace var exp exp2 expm1 sin cos sinh cosh tanh sigmoid
    logsigmoid expit erf erfc gelu silu mish softmax log_softmax softmin logsumexp logaddexp tanhshrink atan arctan
    asinh arcsinh sinc addcmul lerp avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d pad interpolate upsample pixel_shuffle pixel_unshuffle channel_shuffle glu
    scaled_dot_product_attention size dim numel len stride is_floating_point zeros ones full zeros_like ones_like
    full_like empty_like new_zeros new_ones new_full arange linspace eye meshgrid requires_grad_ identity tuple list
    dict
    """)
)

_KINK = "bends"
_JUMP = "jumps"
_SMOOTH = "is given by two formulas that agree to a finite order only"
BROKEN = {
    **dict.fromkeys(
        _words(
            "relu relu6 leaky_relu prelu rrelu threshold hardtanh hardswish hardsigmoid softshrink selu abs absolute "
            "fabs clamp clip clamp_min clamp_max max maximum fmax min minimum fmin amax amin aminmax max_pool1d "
            "max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
            "max_pool2d_with_indices fractional_max_pool2d median nanmedian quantile sort topk kthvalue cummax "
            "cummin frac fmod remainder mod l1_loss smooth_l1_loss"
        ),
        _KINK,
    ),
    **dict.fromkeys(
        _words(
            "sign sgn signbit heaviside floor ceil round trunc fix floordiv floor_divide argmax argmin argsort "
            "searchsorted bucketize hardshrink lt le gt ge eq ne less less_equal greater greater_equal not_equal "
            "isclose one_hot bernoulli int long bool"
        ),
        _JUMP,
    ),
    **dict.fromkeys(("elu", "celu", "softsign"), _SMOOTH),
}
"""Operations that are not analytic, and why."""

PARTLY = {
    **dict.fromkeys(("log", "log2", "log10", "sqrt", "lgamma"), "where the operand is positive"),
    "log1p": "where the operand is above -1",
    "weight_norm": "where the direction is not zero",
    **dict.fromkeys(("reciprocal", "rsqrt"), "where the operand is not zero (or positive)"),
    **dict.fromkeys(
        ("norm", "vector_norm", "normalize", "cosine_similarity", "std", "cdist", "dist"), "away from zero"
    ),
    **dict.fromkeys(("tan", "asin", "acos", "arcsin", "arccos", "atanh", "atan2", "logit"), "on part of the real line"),
    **dict.fromkeys(
        ("inverse", "inv", "solve", "pinverse", "cholesky", "qr", "svd", "eigh", "det"), "on part of its domain"
    ),
}
"""Operations that are analytic on a part of the line, and where."""

_LINEAR: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Bilinear, nn.Identity, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.Embedding, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.ChannelShuffle, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.Fold, nn.Unfold,
    nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d,
    nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
    nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
)  # fmt: skip
_CURVED: tuple[type[nn.Module], ...] = (
    nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.GELU, nn.SiLU, nn.Mish, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin,
    nn.Tanhshrink, nn.GLU, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.MultiheadAttention,
)  # fmt: skip
_BENT: dict[type[nn.Module], str] = {
    **dict.fromkeys(
        (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softshrink,
         nn.SELU, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
         nn.AdaptiveMaxPool3d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
        _KINK,
    ),
    nn.Hardshrink: _JUMP,
    **dict.fromkeys((nn.ELU, nn.CELU, nn.Softsign), _SMOOTH),
}  # fmt: skip
_NORMS: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.GroupNorm)
_INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_RECURRENT = (nn.RNN, nn.RNNCell)
_TRANSFORMER = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_STACKS = (nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer)
_RMS: tuple[type[nn.Module], ...] = (nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()

LEAVES: frozenset[type[nn.Module]] = frozenset(
    (*_LINEAR, *_CURVED, *_BENT, *_NORMS, *_INSTANCE, *_BATCH, *_DROPOUT, *_RECURRENT, *_TRANSFORMER, *_STACKS, *_RMS)
) | {nn.Softplus, nn.EmbeddingBag}
"""Modules that :func:`of_module` knows, by their exact type."""


def of_softplus(beta: float, threshold: float) -> tuple[str, str]:
    """Judge ``ln(1 + e^(beta x)) / beta`` as torch computes it: linear where beta x exceeds the threshold.

    The function of the paper is analytic. That of torch is not: at x = threshold / beta it jumps down by
    ``ln(1 + e^-threshold) / |beta|``. With the default threshold that is 2e-9 / beta, and it counts as the analytic
    function with this error; with a lower threshold it counts as another function.
    """
    if threshold < SOFTPLUS_THRESHOLD:
        jump = math.log1p(math.exp(-threshold)) / abs(beta)
        return "broken", f"jumps by {jump:.1e} where beta x exceeds its threshold of {threshold:g}"
    return "rounded", f"{math.log1p(math.exp(-threshold)) / abs(beta):.1e}"


def of_module(module: nn.Module) -> tuple[str, str]:
    """Judge a module of :data:`LEAVES`: "analytic", "broken", "partly", "rounded" or "unclear", and why.

    Examples
    --------
    >>> of_module(nn.ReLU())
    ('broken', 'bends')
    >>> of_module(nn.Softplus())
    ('rounded', '2.1e-09')
    """
    kind = type(module)
    if kind in _BENT:
        return "broken", _BENT[kind]
    if kind is nn.Softplus:
        return of_softplus(float(module.beta), float(module.threshold))  # type: ignore[arg-type]  # numbers
    if isinstance(module, _TRANSFORMER):
        return _of_transformer(module)
    if isinstance(module, _STACKS):
        return _worst(of_module(part) for part in module.modules() if part is not module and type(part) in LEAVES)
    judgement = ("analytic", "")
    if isinstance(module, _BatchNorm) and module.training:
        judgement = ("unclear", "is in train mode, where z(x_i) depends on the other samples: model.eval()")
    elif isinstance(module, _INSTANCE) and module.training and module.track_running_stats:
        judgement = ("unclear", "is in train mode, where it writes its running statistics: model.eval()")
    elif isinstance(module, _DropoutNd) and module.training and module.p > 0:
        judgement = ("unclear", "is in train mode, where it is random: model.eval()")
    elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and module.training and module.dropout > 0:
        judgement = ("unclear", "has dropout in train mode, which is random: model.eval()")
    elif isinstance(module, (*_NORMS, *_INSTANCE, *_BATCH)) and not float(getattr(module, "eps", 1.0)) > 0.0:
        judgement = ("partly", "where the variance is not zero, since its eps is 0")
    elif isinstance(module, _RMS) and module.eps is not None and not module.eps > 0.0:  # type: ignore[operator]  # a number
        judgement = ("partly", "where the mean square is not zero, since its eps is 0")
    elif isinstance(module, _RECURRENT) and module.nonlinearity == "relu":
        judgement = ("broken", "uses ReLU, which " + _KINK)
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        judgement = ("unclear", "writes to its weights (max_norm)")
    elif isinstance(module, nn.EmbeddingBag) and module.mode == "max":
        judgement = ("broken", _KINK)
    return judgement


def _of_transformer(layer: Any) -> tuple[str, str]:
    parts = [of_module(part) for part in layer.modules() if part is not layer and type(part) in LEAVES]
    activation = layer.activation
    if isinstance(activation, nn.Module):
        known = type(activation) in LEAVES
        parts.append(of_module(activation) if known else ("unclear", "has an activation that is not known"))
    elif activation is F.relu:
        parts.append(("broken", "uses ReLU, which " + _KINK))
    elif activation is not F.gelu:
        parts.append(("unclear", "has an activation that is not known"))
    return _worst(parts)


def _worst(judgements: Iterable[tuple[str, str]]) -> tuple[str, str]:
    order = ("broken", "unclear", "partly", "rounded", "analytic")
    return min(judgements, key=lambda judgement: order.index(judgement[0]), default=("analytic", ""))


@dataclasses.dataclass(frozen=True)
class _Finding:
    """An operation that may not be analytic: where, what, kind ("broken", "partly", "rounded", "unclear") and why."""

    where: str
    what: str
    kind: str
    why: str

    def __str__(self) -> str:
        where = f" {self.where!r}" if self.where else ""
        return f"{self.what}{where}" + (f" {self.why}" if self.kind != "rounded" else "")


def check_analytic(model: nn.Module) -> CheckResult:
    """Check whether a model's outputs are real analytic functions of its parameters.

    Every operation between a trainable parameter and the output is inspected: known modules by type, the code of others
    through ``torch.fx``. ReLU and similar functions, max pooling, abs, sign, rounding, clamping and comparisons are not
    analytic; quotients, logarithms and roots of values that depend on the parameters are so only in part.

    Parameters
    ----------
    model : torch.nn.Module
        Not run on data, and not changed. Pass the part up to layer H - 2 for the paper's z; its gate is a sigmoid.

    Returns
    -------
    CheckResult
        HOLDS: all operations were inspected, and all are analytic. FAILS: an operation that is not analytic acts on
        values that depend on the parameters; ``witness`` names each operation with its place. UNDECIDED: an operation
        is analytic in part only, is not known, or cannot be traced (control flow on data, forward hooks, code in other
        languages).

    Raises
    ------
    InvalidInput
        Not a torch.nn.Module, or a scripted one.

    Notes
    -----
    Rigor: NUMERICAL, without a certificate: the inspection is of code, by a table of the operations of torch. A
    composition with an operation that is not analytic can be analytic by coincidence (the ReLU of a square); the check
    gives FAILS for it.

    The verdict is about the mathematical function, which no floating-point program computes exactly. torch's softplus
    is the identity for ``beta x > threshold``; with the default threshold of 20 it differs from
    ``ln(1 + e^(beta x)) / beta`` by 2e-9 / beta at most and counts as that function, with a sentence in the evidence;
    with a lower threshold it fails.

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
    require.instance("model", model, nn.Module, "a torch.nn.Module")
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, torch.jit.ScriptModule):
        got = kind_of(model)
        need = "the torch.nn.Module that it was scripted or traced from"
        raise InvalidInput("model", got, need, "unsupported-model")
    with preserve_state(model):
        operations, findings = _inspect(model)
    return _result(operations, findings, time.perf_counter() - began)


def _inspect(model: nn.Module) -> tuple[int, list[_Finding]]:
    """Return the number of inspected operations, and the findings."""
    hooked = [
        _Finding(name, type(module).__name__, "unclear", "has forward hooks, which are not traced")
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]
    if type(model) in LEAVES:
        return 1, [*hooked, *_judged("", model)]
    try:
        with _len_recorded(model):
            graph = _Tracer().trace(model)
    except Exception as error:  # tracing runs the user's code on proxies: it can raise anything
        findings = [_Finding("", type(model).__name__, "unclear", f"cannot be traced ({first_line(error)})")]
        for name, module in model.named_modules():
            if type(module) in LEAVES:
                # Without a trace it is not known whether, and on what, the module runs.
                findings += [
                    dataclasses.replace(f, kind="unclear", why=f.why + ", if it is used")
                    for f in _judged(name, module)
                    if f.kind != "rounded"
                ]
        return 0, hooked + findings
    return len(graph.nodes), hooked + _walk(model, graph)


class _Tracer(fx.Tracer):
    """Trace through all modules except the known ones."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is judged as a whole."""
        return type(m) in LEAVES


@contextlib.contextmanager
def _len_recorded(model: nn.Module) -> Iterator[None]:
    """Let the code of the modules call len on traced values, which Python itself does not allow."""

    def length(value: Any) -> Any:
        traced = isinstance(value, fx.Proxy)
        return value.tracer.create_proxy("call_function", len, (value,), {}) if traced else len(value)

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
    """Follow the values that depend on a trainable parameter through the graph, and judge every operation on them."""
    dependent: set[fx.Node] = set()
    findings: list[_Finding] = []
    for node in graph.nodes:
        operands = node.all_input_nodes
        depends = any(operand in dependent for operand in operands)
        if node.op == "get_attr":
            value: Any = operator.attrgetter(node.target)(model)
            if isinstance(value, nn.Parameter) and value.requires_grad:
                dependent.add(node)
        elif node.op == "call_module":
            module = model.get_submodule(str(node.target))
            trainable = any(p.requires_grad for p in module.parameters())
            if depends or (trainable and not isinstance(module, nn.PReLU)):  # PReLU is linear in its parameter
                findings += _judged(str(node.target), module)
            if depends or trainable:
                dependent.add(node)
        elif node.op in ("call_function", "call_method") and depends:
            dependent.add(node)
            finding = _operation(model, node, dependent)
            if finding is not None:
                findings.append(finding)
    return list(dict.fromkeys(findings))


def _judged(name: str, module: nn.Module) -> list[_Finding]:
    kind, why = of_module(module)
    if kind == "analytic":
        return []
    if kind == "partly":
        why = f"is analytic only {why}"
    return [_Finding(name, type(module).__name__, kind, why)]


def _operation(model: nn.Module, node: fx.Node, dependent: set[fx.Node]) -> _Finding | None:
    """Judge a function or method whose operands depend on the parameters."""
    where, name = _where(model, node), _name(node)

    def finding(kind: str, why: str) -> _Finding:
        return _Finding(where, f"{name} in", kind, why) if where else _Finding("", f"{name} in forward", kind, why)

    arguments = [*node.args, *node.kwargs.values()]
    if not _from_torch(node):
        return finding("unclear", "is not known")
    if name == "getattr":
        known_attribute = str(node.args[1]) in {"shape", "dtype", "device", "ndim", "T", "mT", "H", "real", "is_cuda"}
        return None if known_attribute else finding("unclear", f"reads {node.args[1]!r}, which is not known")
    if name in ("where", "masked_fill", "masked_select"):
        condition = node.args[0] if name == "where" else _argument(node, 1, "mask")
        return finding("broken", "selects by a comparison") if condition in dependent else None
    if name in ("truediv", "div", "divide", "itruediv", "true_divide"):
        return (
            finding("partly", "divides by a value that depends on the parameters")
            if arguments[1] in dependent
            else None
        )
    if name in ("pow", "ipow"):
        exponent = _argument(node, 1, "exponent")
        whole = isinstance(exponent, int) or (isinstance(exponent, float) and exponent.is_integer())
        fine = whole and isinstance(exponent, int | float) and exponent >= 0
        return None if fine else finding("partly", "is analytic only where the base is positive")
    if name == "softplus":
        beta, threshold = _argument(node, 1, "beta", 1.0), _argument(node, 2, "threshold", SOFTPLUS_THRESHOLD)
        if isinstance(beta, int | float) and isinstance(threshold, int | float):
            return finding(*of_softplus(float(beta), float(threshold)))
        return finding("unclear", "has a threshold that is not a number")
    if name in ("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm"):
        eps = node.kwargs.get("eps", 1e-5)
        fine = isinstance(eps, int | float) and eps > 0
        if name == "batch_norm" and node.kwargs.get("training", False):
            return finding("unclear", "uses the statistics of the batch")
        return (
            None if fine else finding("partly", "is analytic only where the variance is not zero, since its eps is 0")
        )
    if name.endswith("dropout"):
        random = _argument(node, 2, "training", True)
        return finding("unclear", "is random in train mode: model.eval()") if random else None
    if name in BROKEN:
        return finding("broken", BROKEN[name])
    if name in PARTLY:
        return finding("partly", f"is analytic only {PARTLY[name]}")
    return None if name in ANALYTIC else finding("unclear", "is not known")


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _name(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.strip("_") if name != "_" else name


def _from_torch(node: fx.Node) -> bool:
    """Whether a function is from torch or Python itself; methods count as those of tensors."""
    if node.op == "call_method":
        return True
    module = getattr(node.target, "__module__", None) or "torch"  # builtins of torch have none
    return str(module).partition(".")[0] in _SOURCES


def _where(model: nn.Module, node: fx.Node) -> str:
    """Return the path of the module whose forward runs the operation; empty for that of the model."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _result(operations: int, findings: list[_Finding], seconds: float) -> CheckResult:
    broken = [f for f in findings if f.kind == "broken"]
    unclear = [f for f in findings if f.kind in ("partly", "unclear")]
    rounded = [f for f in findings if f.kind == "rounded"]
    if broken:
        verdict, reason = Verdict.FAILS, f"not analytic in the parameters: {_list(broken)}"
    elif unclear:
        verdict, reason = Verdict.UNDECIDED, f"not established: {_list(unclear)}"
    else:
        verdict, reason = Verdict.HOLDS, f"every operation on the parameters is analytic ({operations} inspected)"
    evidence = []
    if broken and unclear:
        evidence.append(f"and not established: {_list(unclear)}")
    if rounded:
        worst = max(float(f.why) for f in rounded)
        evidence.append(
            f"softplus ({len(rounded)} of them) counts as ln(1 + e^(beta x)) / beta, from which torch differs by at "
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
        measured={"operations": operations, **listed},
        witness={"operations": listed["broken"]} if broken else None,
        cost={"seconds": seconds},
    )


def _list(findings: Iterable[_Finding]) -> str:
    words = [str(finding) for finding in findings]
    more = len(words) - _SHOWN
    return "; ".join(words[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
