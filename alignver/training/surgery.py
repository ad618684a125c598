"""Model modification (section 3.2.2): any network, its last two layers in the form that the theory needs."""

from __future__ import annotations

import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.training.endings import Call, Ending, ending
from alignver.training.head import GatedHead, with_bias

__all__ = ["GatedNetwork", "Tap", "gated", "modify"]


class Tap(nn.Module):
    """Stands where a layer was and keeps what arrives there; what it passes on has the layer's shape and no content."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep x, and pass on zeros in the shape of the layer's output."""
        self.seen = x
        return x.new_zeros((*x.shape[:-1], self.width))


class GatedNetwork(nn.Module):
    """A network whose last two layers are a :class:`~alignver.training.head.GatedHead`.

    Parameters
    ----------
    body : torch.nn.Module
        The network up to z; what follows the tap in it does nothing.
    tap : Tap or None
        Where z arrives; None if it is the body's own output.
    head : GatedHead
    changes : tuple of str
        What was changed, in words.
    """

    def __init__(self, body: nn.Module, tap: Tap | None, head: GatedHead, changes: tuple[str, ...]) -> None:
        super().__init__()
        self.body, self.head, self.changes = body, head, changes
        self._tap = [tap]  # in a list: it is a module of the body already

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs (n, m_y)."""
        out: torch.Tensor = self.head(self.features(x))
        return out

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return z without its constant, (n, m_{H-1} - 1)."""
        out = self.body(x)
        tap = self._tap[0]
        if tap is not None:
            out, tap.seen = tap.seen, None
        if not isinstance(out, torch.Tensor):
            raise InvalidInput("model", f"a {type(out).__name__} before its last layers", "a tensor")
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

    - The last two layers are fully connected with only an activation between: they become the head, with their
      weights (every output starts from the same hidden layer). The bias of the last one has no place in equation (16)
      and is dropped.
    - Only the last one is: a hidden layer of ``width`` units is put before it (for ResNet-18, the paper's choice), and
      both start at PyTorch's initialisation.
    - Neither is: two layers are added behind the model's output.

    Parameters
    ----------
    model : torch.nn.Module
        Left alone. It has to have parameters.
    x : torch.Tensor
        A few inputs, to see the order in which the layers run (:func:`alignver.training.endings.ending`).
    outputs : int
        m_y, as the targets have it.
    width : int, optional
        m_H of a hidden layer that is added; needed in the last two cases.
    slope : float
        Of the gates.
    layers : tuple of str, optional
        Names of the one or two layers to be replaced, as ``model.named_modules()`` has them, if not the last ones.

    Returns
    -------
    GatedNetwork

    Raises
    ------
    InvalidInput
        No parameters, names of no linear layers, outputs that do not match, a width that is missing or not needed.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> modified = modify(net, torch.zeros(3, 2), outputs=1, slope=100.0)
    >>> modified(torch.zeros(3, 2)).shape, modified.head.hidden.shape
    (torch.Size([3, 1]), torch.Size([1, 4, 6]))
    """
    return gated(ending(model, x, layers), outputs=outputs, width=width, slope=slope)


def gated(found: Ending, *, outputs: int, width: int | None = None, slope: float = 1.0) -> GatedNetwork:
    """Replace the layers that :func:`~alignver.training.endings.ending` found with a gated head, in the copy of
    the model made there.
    """
    layers = found.layers
    if layers and found.outputs != outputs:
        got = f"{found.outputs} outputs of {layers[-1].name!r} beside targets with {outputs}"
        raise InvalidInput("model", got, "as many outputs as targets")
    width = _width(found, width)
    features = layers[0].module.in_features if layers else found.out.reshape(len(found.out), -1).shape[1]
    head = GatedHead(features, width, outputs, slope).to(device=found.out.device, dtype=found.out.dtype)
    if not layers:
        words = f"two fully connected layers added behind the model: {width} gated units for each of {outputs} outputs"
        return GatedNetwork(found.body, None, head, (words,))
    changes = _adopted(head, found) if len(layers) == 2 else _added(head, layers[0])
    tap = Tap(layers[0].module.out_features)
    body = _replaced(found.body, layers[0].module, tap)
    if len(layers) == 2:
        body = _replaced(body, layers[1].module, nn.Identity())
    shared = {id(p) for p in body.parameters()}
    for call in layers:
        if any(id(p) in shared for p in call.module.parameters()):
            changes.append(f"{call.name} shared its weights with another layer and does so no more")
    if found.after:
        changes.append(f"what follows {layers[-1].name} is left out")
    network = GatedNetwork(body, tap, head, tuple(changes))
    _tried(network, found)
    return network


def _width(found: Ending, width: int | None) -> int:
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
        raise InvalidInput("width", repr(width), "an integer >= 1")
    if len(found.layers) == 2:
        own = int(found.layers[0].module.out_features)
        if width not in (None, own):
            got = f"width={width} beside {own} units of {found.layers[0].name!r}"
            need = f"none; or layers=({found.layers[1].name!r},), which puts a new hidden layer before the last one"
            raise InvalidInput("width", got, need)
        return own
    if width is None:
        had = "one fully connected layer" if found.layers else "no fully connected layer"
        need = (
            "width=, the units of the hidden layer to be added (the paper: twice n over the features), or layers=, the "
            "names of the two layers that were meant"
        )
        raise InvalidInput("width", f"no width for a model that ends in {had}", need)
    return width


@torch.no_grad()
def _adopted(head: GatedHead, found: Ending) -> list[str]:
    """Give the head the weights of two layers; return what that changes."""
    first, last = found.layers
    head.hidden.copy_(with_bias(first.module).expand_as(head.hidden))
    head.output.copy_(last.module.weight)
    of = "the output" if len(head.hidden) == 1 else f"each of {len(head.hidden)} outputs"
    between = f" replace {' and '.join(found.between)}" if found.between else ""
    changes = [
        f"{first.name} and {last.name} became gated units, {first.module.out_features} for {of}, with the same "
        f"weights; gates of slope {head.slope:g}{between} between them"
    ]
    if last.module.bias is not None:
        changes.append(f"the bias of {last.name} was dropped: equation (16) has none")
    return changes


def _added(head: GatedHead, last: Call) -> list[str]:
    name = last.name or type(last.module).__name__
    count, width, _ = head.hidden.shape
    of = "the output" if count == 1 else f"each of {count} outputs"
    return [f"{name} was replaced by {width} gated units for {of} and a last layer"]


def _replaced(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Replace a module with another under all its names; return the model (``new`` if the model was it)."""
    if model is old:
        return new
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, new)
    return model


@torch.no_grad()
def _tried(network: GatedNetwork, found: Ending) -> None:
    """Make sure that the features are what arrived at the layer before: it may be reached by ways that have no name."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    tap, before = network._tap[0], found.layers[0].seen
    assert tap is not None
    try:
        network.body(found.x)
    finally:
        for module, mode in modes:
            module.training = mode
    z, tap.seen = tap.seen, None
    same = z is not None and before is not None and z.shape == before.shape
    if z is None or before is None or not same or not bool(torch.allclose(z, before, equal_nan=True)):
        got = f"a layer {found.layers[0].name!r} that is reached by another way than its name"
        raise InvalidInput("model", got, "layers that are replaced when their attribute is")
