"""The modification of a network (section 3.2.2): its last two layers as gated units whose gates can be frozen.

The gated units are those of equations (16) to (18).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from alignver import require
from alignver.arrays import available_memory
from alignver.errors import AlignverWarning, InvalidInput, first_line, kind_of
from alignver.network.output_layers import Call, OutputLayers, find_output_layers, is_computed
from alignver.network.preserve_state import eval_mode

_COPIES = 5  # of a unit's weights: with gates, gradients and two moments of an optimiser


class GatedHead(nn.Module):
    r"""Outputs of gated hidden units, with a separate hidden layer for each output.

    .. math:: f(x)_j = W^{(H)}_{j*} \bigl( \tilde\sigma(R^{(j)\top} z) \circ (W^{(H-1,j)} z) \bigr), \qquad
              z = [\bar z^\top, 1]^\top

    with the logistic gate of slope s, :math:`\tilde\sigma(t) = 1 / (1 + e^{-s t})`. Until :meth:`freeze` the gates are
    the weights themselves, :math:`R^{(j)} = (W^{(H-1,j)})^\top`; afterwards they are constant, and the outputs are
    linear in the weights. Frozen gates are evaluated in float64, whatever the dtype of the rest.

    Parameters
    ----------
    features : int
        Number of entries of z without the constant: m_{H-1} - 1.
    width : int
        Number of hidden units, m_H.
    outputs : int
        Number of outputs, m_y.
    slope : float
        s, the paper's :math:`\varsigma'`.

    Attributes
    ----------
    hidden : (m_y, m_H, m_{H-1}) parameter
        :math:`W^{(H-1,j)}`, with the bias as the last column.
    output : (m_y, m_H) parameter
        :math:`W^{(H)}`.
    gates : (m_y, m_H, m_{H-1}) buffer
        Rows are the columns of :math:`R^{(j)}`; used once ``frozen``.
    frozen : () bool buffer
        Part of the state dict, so that a loaded head is in the right phase.

    References
    ----------
    Section 3.2.2 of Kawaguchi, Zhang, Deng (2022).

    Examples
    --------
    >>> head = GatedHead(3, 4, 2)
    >>> head(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    hidden: nn.Parameter
    output: nn.Parameter
    gates: torch.Tensor
    frozen: torch.Tensor

    def __init__(self, features: int, width: int, outputs: int, slope: float = 1.0) -> None:
        super().__init__()
        for name, value in (("features", features), ("width", width), ("outputs", outputs)):
            require.integer(name, value, least=1)
        self.slope = gate_slope(slope)
        first, last = nn.Linear(features, width), nn.Linear(width, outputs, bias=False)
        self.hidden = nn.Parameter(with_bias(first).expand(outputs, -1, -1).clone())
        self.output = nn.Parameter(last.weight.detach().clone())
        self.register_buffer("gates", torch.zeros_like(self.hidden))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))
        self._exploiting = False

    @property
    def in_features(self) -> int:
        """The number of features without the constant, as of a linear layer."""
        return self.hidden.shape[2] - 1

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the outputs (n, m_y) of features (n, m_{H-1} - 1)."""
        return self.of_features(self.features(z))

    def features(self, z: torch.Tensor) -> torch.Tensor:
        """Append the constant neuron."""
        return torch.cat([z, z.new_ones((*z.shape[:-1], 1))], -1)

    def of_features(self, z: torch.Tensor) -> torch.Tensor:
        """Return the outputs for features with their constant, (n, m_{H-1})."""
        values = torch.einsum("nm,jhm->jnh", z, self.hidden)
        return torch.einsum("jnh,jh->nj", values * self.gate_values(z, values), self.output)

    def gate_values(self, z: torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
        """Return the values of the gates, (m_y, n, m_H); ``values`` are the products of weights and z, if known."""
        if self._exploiting:
            # Steep gates have large arguments, whose rounding in float32 can put a sample on the wrong side of a gate,
            # and proofs are about the exact gates. MPS devices have no float64.
            dtype = z.dtype if z.device.type == "mps" else torch.float64
            values = torch.einsum("nm,jhm->jnh", z.to(dtype), self.gates.to(dtype))
            return torch.sigmoid(self.slope * values).to(z.dtype)
        if values is None:
            values = torch.einsum("nm,jhm->jnh", z, self.hidden)
        return torch.sigmoid(self.slope * values)

    @torch.no_grad()
    def freeze(self, gates: torch.Tensor | None = None) -> None:
        """Fix the gates at the current weights (line 10 of Algorithm 1), or at ``gates``."""
        self.gates.copy_(self.hidden if gates is None else gates)
        self.frozen.fill_(True)
        self._exploiting = True

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        # A Python bool in addition to the buffer: a branch on a tensor synchronises and breaks torch.compile.
        self._exploiting = bool(self.frozen)

    def extra_repr(self) -> str:
        """Return the sizes and the phase."""
        outputs, width, features = self.hidden.shape
        phase = "frozen gates" if self._exploiting else "own gates"
        return f"features={features - 1}+1, width={width}, outputs={outputs}, slope={self.slope:g}, {phase}"


def with_bias(layer: nn.Linear) -> torch.Tensor:
    """Return the weights (out, in + 1) of a layer with its bias, or zeros, as the last column."""
    weight = layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    return torch.cat([weight, bias[:, None]], 1)


def gate_slope(gate: Any) -> float:
    """Return the slope of a logistic gate: a positive number, or the sigmoid of torch, whose slope is 1.

    Raises
    ------
    InvalidInput
        Anything else: the theory needs a gate that goes from 0 to 1, and the proofs are about the logistic one.

    Examples
    --------
    >>> gate_slope(torch.sigmoid), gate_slope(1000)
    (1.0, 1000.0)
    """
    if gate is torch.sigmoid or gate is torch.nn.functional.sigmoid or isinstance(gate, nn.Sigmoid):
        return 1.0
    need = "the slope of a logistic gate: a positive finite number, or torch.sigmoid"
    return require.real("gate", gate, above=0.0, need=need)


class Tap(nn.Module):
    """Takes the place of a layer and stores its input; its output is zero, in the shape of the layer's output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.input: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Store x, and return zeros in the shape of the layer's output."""
        self.input = x
        return x.new_zeros((*x.shape[:-1], self.width))

    def take(self) -> torch.Tensor | None:
        """Return the stored input, and release it."""
        stored, self.input = self.input, None
        return stored


class GatedNetwork(nn.Module):
    """A network whose last two layers are a :class:`~alignver.training.gated_network.GatedHead`.

    Parameters
    ----------
    body : torch.nn.Module
        The network up to z; the modules after the tap have no effect.
    tap : Tap or None
        The module whose input is z; None if z is the output of the body.
    head : GatedHead
    changes : tuple of str
        A sentence for each change.
    """

    def __init__(self, body: nn.Module, tap: Tap | None, head: GatedHead, changes: tuple[str, ...]) -> None:
        super().__init__()
        self.body, self.head, self.changes = body, head, changes
        self._tap = [tap]  # in a list, so that it is not registered twice: it is a module of the body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs (n, m_y)."""
        out: torch.Tensor = self.head(self.features(x))
        return out

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return z without its constant, (n, m_{H-1} - 1)."""
        out = self.body(x.clone())  # a forward pass may write to its input
        if self._tap[0] is not None:
            out = self._tap[0].take()
        if not isinstance(out, torch.Tensor):
            got = f"{kind_of(out)} before its last layers"
            raise InvalidInput("model", got, "a tensor", code="unsupported-model")
        return out.flatten(1)


def modify(
    model: nn.Module,
    x: torch.Tensor,
    *,
    outputs: int,
    width: int | None = None,
    slope: float = 1.0,
    layers: tuple[str, ...] | None = None,
) -> GatedNetwork:
    """Return a modified copy of a model: its last two layers replaced by a gated head, or one or two added.

    - The last two layers are fully connected with only an activation between them: they become the head, with their
      weights (every output starts from the same hidden layer). The bias of the last one is dropped: equation (16) has
      none.
    - Only the last one is fully connected: a hidden layer of ``width`` units is put before it (for ResNet-18, the
      paper's choice), and both start at PyTorch's initialisation.
    - Neither is fully connected: two layers are added after the model's output.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed. It has to have parameters.
    x : torch.Tensor
        A few inputs, to find the order in which the layers run
        (:func:`alignver.network.output_layers.find_output_layers`).
    outputs : int
        m_y, the number of columns of the targets.
    width : int, optional
        m_H of a hidden layer that is added; needed in the last two cases.
    slope : float
        Slope of the gates.
    layers : tuple of str, optional
        Names of the one or two layers to be replaced, as ``model.named_modules()`` has them, if not the last ones.

    Returns
    -------
    GatedNetwork

    Raises
    ------
    InvalidInput
        A model without parameters, names that are not those of linear layers, outputs that do not match, a width that
        is missing or not needed.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> modified = modify(net, torch.zeros(3, 2), outputs=1, slope=100.0)
    >>> modified(torch.zeros(3, 2)).shape, modified.head.hidden.shape
    (torch.Size([3, 1]), torch.Size([1, 4, 6]))
    """
    return gated(find_output_layers(model, x, layers), outputs=outputs, width=width, slope=slope)


def gated(ending: OutputLayers, *, outputs: int, width: int | None = None, slope: float = 1.0) -> GatedNetwork:
    """Replace the output layers of a copied model by a gated head, or append the head if there are no such layers."""
    layers = ending.layers
    if layers and ending.outputs != outputs:
        got = f"{ending.outputs} outputs of {layers[-1].name!r} for targets with {outputs}"
        raise InvalidInput("model", got, "as many outputs as targets", code="wrong-shape")
    if not ending.out.is_floating_point():
        raise InvalidInput(
            "model", f"outputs of dtype {ending.out.dtype}", "floating-point outputs", "unsupported-model"
        )
    width = _width(ending, width)
    features = layers[0].module.in_features if layers else ending.out.reshape(len(ending.out), -1).shape[1]
    _require_room(width, (features + 1) * outputs * ending.out.element_size(), ending.out.device)
    head = GatedHead(features, width, outputs, slope).to(device=ending.out.device, dtype=ending.out.dtype)
    before = _size(ending.body)
    if not layers:
        change = f"two fully connected layers added after the model: {width} gated units for {_of(head)}"
        change += f", of {features} features; {ending.unused}" if ending.unused else ""
        return GatedNetwork(ending.body, None, head, (change, _counted(before, before + _size(head))))
    changes = _copy_weights(head, ending) if len(layers) == 2 else _added(head, layers[0])
    tap = Tap(layers[0].module.out_features)
    body = _replaced(ending.body, layers[0].module, tap)
    if len(layers) == 2:
        body = _replaced(body, layers[1].module, nn.Identity())
    shared = {id(p) for p in body.parameters()}
    for call in layers:
        if any(id(p) in shared for p in call.module.parameters()):
            changes.append(f"{call.name} shared its weights with another layer and no longer does")
    if ending.after:
        changes.append(f"what follows {layers[-1].name} is left out")
    changes.append(_counted(before, _size(body) + _size(head)))
    network = GatedNetwork(body, tap, head, tuple(changes))
    _require_same_features(network, ending)
    return network


def _require_room(width: int, unit: int, device: torch.device) -> None:
    """Refuse units whose training needs more memory than there is; ``unit`` are the bytes of one unit's weights."""
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    most = room // (_COPIES * unit)
    if width > most:
        got = f"width={width}, whose weights, gates and gradients need {width * _COPIES * unit / 1e9:.3g} GB"
        raise InvalidInput("width", got, f"at most {most}: {room / 1e9:.3g} GB are available", code="too-large")


_GATE_SECONDS = 5e-8  # a step's time for the gate of one unit at one sample, measured on one core


def warn_of_needless_width(head: GatedHead, n: int) -> None:
    """Warn of far more gated units than rank n needs, if they make a step long."""
    outputs, width, features = head.hidden.shape
    enough, seconds = -(-n // features), _GATE_SECONDS * n * outputs * width
    if width > 100 * enough and seconds > 0.5:
        words = f"{width} gated units for each of {outputs} outputs take about {seconds:.1g} s in a step on all samples"
        words += f": {enough} can be enough for rank n = {n}, and twice as many are with probability one"
        warnings.warn(words, AlignverWarning, stacklevel=3)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _counted(before: int, after: int) -> str:
    """Say how many parameters the modified model has, beside the model as it was given."""
    more = after - before
    compared = f"{abs(more)} {'more' if more > 0 else 'fewer'} than" if more else "as many as"
    return f"{after} parameters, {compared} before"


def _width(ending: OutputLayers, width: int | None) -> int:
    if width is not None:
        width = require.integer("width", width, least=1)
    if len(ending.layers) == 2:
        units = int(ending.layers[0].module.out_features)
        if width not in (None, units):
            got = f"width={width} for {units} units of {ending.layers[0].name!r}"
            need = f"none; or layers=({ending.layers[1].name!r},), which puts a new hidden layer before the last one"
            raise InvalidInput("width", got, need, code="conflicting-arguments")
        return units
    if width is None:
        had = "one fully connected layer" if ending.layers else "no fully connected layer"
        need = (
            "width=, the units of the hidden layer to be added (the paper: twice n over the features), or layers=, the "
            "names of the two layers to be replaced"
        )
        got = f"no width for a model that ends in {had}"
        raise InvalidInput("width", got, need, code="conflicting-arguments")
    return width


@torch.no_grad()
def _copy_weights(head: GatedHead, ending: OutputLayers) -> list[str]:
    """Copy the weights of two layers into the head; return the changes in words."""
    first, last = ending.layers
    head.hidden.copy_(with_bias(first.module).expand_as(head.hidden))
    head.output.copy_(last.module.weight)
    *others, final = ending.between or ("",)
    between = f" replace {', '.join(others)}{' and ' if others else ''}{final}" if final else ""
    changes = [
        f"{first.name} and {last.name} became gated units, {first.module.out_features} for {_of(head)}, with the same "
        f"weights; gates of slope {head.slope:g}{between} between them"
    ]
    if last.module.bias is not None:
        changes.append(f"the bias of {last.name} was dropped: equation (16) has none")
    computed = [call.name for call in ending.layers if is_computed(call.module)]
    if computed:
        changes.append(f"the weights of {' and '.join(computed)} are no longer computed from others, as by weight_norm")
    return changes


def _added(head: GatedHead, last: Call) -> list[str]:
    name = last.name or type(last.module).__name__
    return [f"{name} was replaced by {head.hidden.shape[1]} gated units for {_of(head)} and a last layer"]


def _of(head: GatedHead) -> str:
    return "the output" if len(head.hidden) == 1 else f"each of {len(head.hidden)} outputs"


def _replaced(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Replace a module by another under all its names; return the model, or ``new`` if the model is the module."""
    if model is old:
        return new
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, new)
    return model


@torch.no_grad()
def _require_same_features(network: GatedNetwork, ending: OutputLayers) -> None:
    """Raise unless the tap receives the input of the layer that it replaces."""
    tap, replaced = network._tap[0], ending.layers[0]
    assert tap is not None
    try:
        with eval_mode(network):
            network.body(ending.x.clone())
    except Exception as error:  # the user's code, which may do more with a layer than to call it
        got = f"a layer {replaced.name!r} that cannot be replaced ({first_line(error)})"
        raise InvalidInput("model", got, "a forward that only calls its last layers", "unsupported-model") from error
    z, before = tap.take(), replaced.input
    if z is None or before is None or z.shape != before.shape or not torch.allclose(z, before, equal_nan=True):
        got = f"a layer {replaced.name!r} that is reached by another way than its name"
        raise InvalidInput("model", got, "layers that are replaced when their attribute is", code="unsupported-model")
