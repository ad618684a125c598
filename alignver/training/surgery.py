"""Model modification (section 3.2.2): any network, its last two layers in the form that the theory needs."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.training.head import GatedHead, with_bias

__all__ = ["GatedNetwork", "Tap", "modify"]


class Tap(nn.Module):
    """Stands where a layer was and keeps what arrives there; what it passes on has the layer's shape and no content."""

    def __init__(self, width: int | None) -> None:
        super().__init__()
        self.width = width
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep x, and pass on zeros in the shape of the layer's output (or x itself)."""
        self.seen = x
        return x if self.width is None else x.new_zeros((*x.shape[:-1], self.width))


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

    def __deepcopy__(self, memo: dict[int, Any]) -> GatedNetwork:
        """Copy with the tap being the one in the copied body."""
        body = copy.deepcopy(self.body, memo)
        tap = None if self._tap[0] is None else memo[id(self._tap[0])]
        return GatedNetwork(body, tap, copy.deepcopy(self.head, memo), self.changes).train(self.training)


@dataclasses.dataclass
class _Call:
    name: str
    module: nn.Module
    output: torch.Tensor


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
        A few inputs, to see the order in which the layers run.
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
        No parameters, names of no linear layers, outputs that do not match, a width that is missing.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> modified = modify(net, torch.zeros(3, 2), outputs=1, slope=100.0)
    >>> modified(torch.zeros(3, 2)).shape, modified.head.hidden.shape
    (torch.Size([3, 1]), torch.Size([1, 4, 6]))
    """
    if next(iter(model.parameters()), None) is None:
        raise InvalidInput("model", "a model without parameters", "a model to train")
    body = copy.deepcopy(model)
    calls, out = _watch(body, x)
    if not isinstance(out, torch.Tensor) or out.ndim < 2 or len(out) != len(x):
        got = f"outputs of shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
        raise InvalidInput("model", got, "one tensor with a row for each sample")
    chosen = _named(calls, layers) if layers is not None else _last(calls, out)
    if chosen and chosen[-1].module.out_features != outputs:
        got = f"{chosen[-1].module.out_features} outputs of {chosen[-1].name!r} beside targets with {outputs}"
        raise InvalidInput("model", got, "as many outputs as targets")
    if len(chosen) < 2 and (width is None or width < 1):
        had = "one fully connected layer" if chosen else "no fully connected layer"
        need = "width=, the units of the hidden layer to be added (the paper: twice n over the features)"
        raise InvalidInput("width", f"width={width!r} for a model that ends in {had}", need)
    return _assembled(body, x, out, chosen, outputs, width, slope)


def _assembled(
    body: nn.Module,
    x: torch.Tensor,
    out: torch.Tensor,
    chosen: list[Any],
    outputs: int,
    width: int | None,
    slope: float,
) -> GatedNetwork:
    if not chosen:
        assert width is not None
        head = GatedHead(out.flatten(1).shape[1], width, outputs, slope)
        words = f"two fully connected layers added behind the model: {width} gated units for each of {outputs} outputs"
        return GatedNetwork(body, None, _placed(head, out), (words,))
    first = chosen[0].module
    head = GatedHead(first.in_features, width or first.out_features, outputs, slope)
    changes = []
    if len(chosen) == 2:
        last = chosen[1].module
        with torch.no_grad():
            head.hidden.copy_(with_bias(first).expand_as(head.hidden))
            head.output.copy_(last.weight)
        changes.append(
            f"{chosen[0].name} and {chosen[1].name} became gated units, {first.out_features} for each of {outputs} "
            f"outputs, with the same weights; gates of slope {slope:g} in place of the activation between them"
        )
        if last.bias is not None:
            changes.append(f"the bias of {chosen[1].name} was dropped: equation (16) has none")
        _replace(body, chosen[1].name, nn.Identity())
    else:
        changes.append(
            f"{chosen[0].name} was replaced by {width} gated units for each of {outputs} outputs and a last layer"
        )
    tap = Tap(first.out_features if len(chosen) == 2 else None)
    body = _replace(body, chosen[0].name, tap)
    return GatedNetwork(body, tap, _placed(head, out), tuple(changes))


def _placed(head: GatedHead, like: torch.Tensor) -> GatedHead:
    return head.to(device=like.device, dtype=like.dtype)


@torch.no_grad()
def _watch(model: nn.Module, x: torch.Tensor) -> tuple[list[_Call], Any]:
    """Run a copy of the model in eval mode; return the calls of whatever has parameters, in order, and its output."""
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    calls: list[_Call] = []
    handles = [
        module.register_forward_hook(lambda own, _inputs, output: calls.append(_Call(names[own], own, output)))
        for module in names
        if isinstance(module, nn.Linear) or next(module.parameters(recurse=False), None) is not None
    ]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return calls, model(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInput("X", f"inputs that the model refuses ({message})", "inputs that the model takes") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode


def _last(calls: list[_Call], out: torch.Tensor) -> list[Any]:
    """Return the linear layers that the model ends in: two if only something without parameters lies between."""
    if not calls or calls[-1].output is not out or not isinstance(calls[-1].module, nn.Linear):
        return []
    last = calls[-1]
    if sum(call.module is last.module for call in calls) > 1:
        return []  # used elsewhere too: it cannot be taken out
    if len(calls) < 2:
        return [last]
    before = calls[-2]
    alone = isinstance(before.module, nn.Linear) and sum(call.module is before.module for call in calls) == 1
    fits = before.output.shape == (*out.shape[:-1], last.module.in_features) and out.ndim == 2
    return [before, last] if alone and fits else [last]


def _named(calls: list[_Call], layers: tuple[str, ...]) -> list[Any]:
    if not 1 <= len(layers) <= 2:
        raise InvalidInput("layers", repr(layers), "one name or two")
    found = []
    for name in layers:
        linear = [call for call in calls if isinstance(call.module, nn.Linear)]
        own = [call for call in linear if call.name == name]
        if len(own) != 1:
            known = ", ".join(dict.fromkeys(call.name for call in linear)) or "none"
            need = f"the name of a linear layer that runs once; those that run: {known}"
            raise InvalidInput("layers", f"{name!r}, run {len(own)} times", need)
        found.append(own[0])
    return found


def _replace(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put a module in the place of another; return the model (``new`` itself if the model was the one)."""
    if not name:
        return new
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, new)
    return model
