"""Inputs that a model takes, guessed from its first layer: for statements about every input of a shape."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from alignver.errors import InvalidInput, kind_of
from alignver.network.inputs import without_fused_layers
from alignver.network.leaves import deep_copy

__all__ = ["example_inputs"]

_SIDES = (32, 28, 8, 10, 16, 64, 12, 20, 24, 14, 96, 128, 224, 6, 5, 4)
_SAMPLES = 2


def example_inputs(model: nn.Module) -> torch.Tensor:
    """Return two samples of a shape on which a copy of the model runs.

    Shapes are tried in this order: those that the first layer with parameters takes, then rows of 1 to 16 numbers.

    Raises
    ------
    InvalidInput
        The model runs on none of them.

    Examples
    --------
    >>> example_inputs(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 2))).shape
    torch.Size([2, 3, 28, 28])
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = torch.float32 if parameter is None or not parameter.is_floating_point() else parameter.dtype
    with contextlib.suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin = deep_copy(model)
        for x in _candidates(twin):
            x = x.to(device=device, dtype=dtype if x.is_floating_point() else x.dtype)
            with contextlib.suppress(Exception), without_fused_layers(twin):
                if isinstance(twin(x), torch.Tensor):
                    return x
    got = f"{kind_of(model)} that runs on no input that its first layer suggests"
    raise InvalidInput("model", got, "the inputs: X=", "unsupported-model")


def _candidates(model: nn.Module) -> Iterator[torch.Tensor]:
    def floats(*shape: int) -> torch.Tensor:
        return torch.linspace(-1.0, 1.0, _SAMPLES * torch.Size(shape).numel()).reshape(_SAMPLES, *shape)

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            for length in (6, 1, 16, 64):
                yield torch.arange(_SAMPLES * length).reshape(_SAMPLES, length) % module.num_embeddings
            yield torch.arange(_SAMPLES) % module.num_embeddings
        elif isinstance(module, nn.Linear):
            yield floats(module.in_features)
            yield floats(5, module.in_features)
        elif isinstance(module, nn.modules.conv._ConvNd):
            axes = {nn.Conv1d: 1, nn.Conv3d: 3, nn.ConvTranspose1d: 1, nn.ConvTranspose3d: 3}.get(type(module), 2)
            for side in _SIDES if axes < 3 else (8, 16):
                yield floats(module.in_channels, *[side] * axes)
                if module.in_channels == 1:
                    yield floats(*[side] * axes)
        elif isinstance(module, nn.RNNBase):
            yield floats(5, module.input_size)
        elif isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            width = module.embed_dim if isinstance(module, nn.MultiheadAttention) else module.norm1.normalized_shape[0]
            yield floats(5, int(width))
        elif next(module.parameters(recurse=False), None) is None or module is model:
            continue
        break
    for width in range(1, 17):
        yield floats(width)
