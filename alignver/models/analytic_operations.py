"""Which operations and modules of torch are real analytic in their operands, and which are not, and why.

Analytic: polynomials, exp, sin, tanh, the logistic function, erf and what sums, products and compositions make of them
(softmax, GELU, SiLU, normalisations with eps > 0), and everything linear: convolution, average pooling, resampling,
padding, selection by positions that do not depend on the operand. Not analytic: whatever is given by several formulas
(ReLU, abs, max, rounding), even where it is smooth to some order, as ELU and softsign are. In between are functions
that are analytic on a part of the line only: quotients, logarithms, roots.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["ANALYTIC", "BROKEN", "LEAVES", "PARTLY", "SOFTPLUS_THRESHOLD", "of_module", "of_softplus"]

SOFTPLUS_THRESHOLD = 20.0
"""torch's own: above it softplus returns its argument, which is ln(1 + e^-20) = 2e-9 less than ln(1 + e^20)."""


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
_SMOOTH = "is given by two formulas, smooth to some order only"
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
            "searchsorted "
            "bucketize hardshrink lt le gt ge eq ne less less_equal greater greater_equal not_equal isclose one_hot "
            "bernoulli int long bool"
        ),
        _JUMP,
    ),
    **dict.fromkeys(("elu", "celu", "softsign"), _SMOOTH),
}
"""Operations that are not analytic, and what they do instead."""

PARTLY = {
    **dict.fromkeys(("log", "log2", "log10", "sqrt", "lgamma"), "where the operand is positive"),
    "log1p": "where the operand is above -1",
    "weight_norm": "where the direction is not zero",
    **dict.fromkeys(("reciprocal", "rsqrt"), "where the operand is not zero (or positive)"),
    **dict.fromkeys(
        ("norm", "vector_norm", "normalize", "cosine_similarity", "std", "cdist", "dist"), "away from zero"
    ),
    **dict.fromkeys(("tan", "asin", "acos", "arcsin", "arccos", "atanh", "atan2", "logit"), "on a part of the line"),
    **dict.fromkeys(("inverse", "inv", "solve", "pinverse", "cholesky", "qr", "svd", "eigh", "det"), "in part"),
}
"""Operations that are analytic on a part of the line, and on which."""

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

    The function of the paper is analytic. What torch returns is not: at x = threshold / beta it falls by
    ``ln(1 + e^-threshold) / |beta|``. At the usual threshold that is 2e-9 / beta, and it counts as the analytic
    function computed with this error; with a lower one, it counts as what it is, another function.
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
    found = ("analytic", "")
    if kind in _BENT:
        found = ("broken", _BENT[kind])
    elif kind is nn.Softplus:
        found = of_softplus(float(module.beta), float(module.threshold))  # type: ignore[arg-type]  # numbers
    elif isinstance(module, _BatchNorm) and module.training:
        found = ("unclear", "is in train mode, where z(x_i) depends on the other samples: model.eval()")
    elif isinstance(module, _INSTANCE) and module.training and module.track_running_stats:
        found = ("unclear", "is in train mode, where it writes its running statistics: model.eval()")
    elif isinstance(module, _DropoutNd) and module.training and module.p > 0:
        found = ("unclear", "is in train mode, where it is random: model.eval()")
    elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and module.training and module.dropout > 0:
        found = ("unclear", "has dropout in train mode, which is random: model.eval()")
    elif isinstance(module, (*_NORMS, *_INSTANCE, *_BATCH)) and not float(getattr(module, "eps", 1.0)) > 0.0:
        found = ("partly", "where the variance is not zero, its eps being 0")
    elif isinstance(module, _RMS) and module.eps is not None and not module.eps > 0.0:  # type: ignore[operator]  # a number
        found = ("partly", "where the mean square is not zero, its eps being 0")
    elif isinstance(module, _RECURRENT) and module.nonlinearity == "relu":
        found = ("broken", "uses ReLU, which " + _KINK)
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        found = ("unclear", "writes to its weights (max_norm)")
    elif isinstance(module, nn.EmbeddingBag) and module.mode == "max":
        found = ("broken", _KINK)
    elif isinstance(module, _TRANSFORMER):
        found = _of_transformer(module)
    elif isinstance(module, _STACKS):
        found = _worst(of_module(part) for part in module.modules() if part is not module and type(part) in LEAVES)
    return found


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


def _worst(found: Any) -> tuple[str, str]:
    order = ("broken", "unclear", "partly", "rounded", "analytic")
    return min(found, key=lambda judged: order.index(judged[0]), default=("analytic", ""))
