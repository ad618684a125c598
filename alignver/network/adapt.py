"""Models and data as people have them: several inputs, loaders, dicts of outputs, in the form of one array each.

A check is about a function from one array of inputs to one array of outputs. :func:`adapted` packs several inputs side
by side into one array, with a module that unpacks them, calls the model and selects the output. The module has the
parameters, buffers and submodules of the model, under the same names.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib
import inspect
import math
import sys
import types
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.arrays import is_array
from alignver.errors import InvalidInput, first_line, kind_of
from alignver.limits import in_memory
from alignver.network.functional import unwrapped
from alignver.network.inputs import as_inputs, dtype_name
from alignver.samples import LABELS, is_collated, is_stream, open_samples, reading_samples, require_all

_EXACT = {torch.float16: 2**11, torch.bfloat16: 2**8, torch.float32: 2**24, torch.float64: 2**53}


@dataclasses.dataclass(frozen=True)
class _Part:
    """One input of a model: its position or keyword, and the shape and dtype of a sample."""

    key: int | str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Adapted(nn.Module):
    """A model of one array: several inputs side by side, one output selected.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters, buffers and submodules are those of this module.
    parts : sequence of parts
        The inputs, in their order; empty for a model of one array.
    select : str, int or callable, optional
    forward_args : mapping, optional
    graphs : GraphBatches, optional
        The array has the numbers of these graphs.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[_Part],
        select: str | int | Callable[[Any], Any] | None,
        forward_args: Mapping[str, Any] | None,
        graphs: GraphBatches | None = None,
    ) -> None:
        super().__init__()
        shared = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
        vars(self).update({name: vars(model)[name] for name in shared})  # the same dicts: a swapped tensor is in both
        # In a tuple, and past nn.Module: its submodules must not have a second name, whatever names they have.
        vars(self)["_adaptation"] = (model, tuple(parts), select, dict(forward_args or {}), graphs)

    @property
    def adapted_model(self) -> nn.Module:
        """The model itself."""
        model: nn.Module = vars(self)["_adaptation"][0]
        return model

    @property
    def training(self) -> bool:
        """The mode of the model."""
        return bool(self.adapted_model.training) if "_adaptation" in vars(self) else True

    @training.setter
    def training(self, mode: bool) -> None:
        if "_adaptation" in vars(self):
            self.adapted_model.training = mode

    def forward(self, x: torch.Tensor) -> Any:
        """Unpack the inputs, run the model and select the output."""
        model, parts, select, forward_args, graphs = vars(self)["_adaptation"]
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
        extra = {name: _cast(value, dtype) for name, value in forward_args.items()}
        if graphs is not None:
            return selected(graphs(model, x, **extra), select)
        args, start = [], 0
        for part in parts:
            size = math.prod(part.shape)
            value = x[:, start : start + size].reshape(len(x), *part.shape)
            start += size
            value = value if part.dtype.is_floating_point else value.to(part.dtype)
            if isinstance(part.key, str):
                extra[part.key] = value
            else:
                args.append(value)
        return selected(model(*(args if parts else [x]), **extra), select)


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() and dtype else value


def selected(output: Any, select: str | int | Callable[[Any], Any] | None) -> Any:
    """Return one output of a model: an entry of a dict, tuple or ModelOutput, or the result of a function.

    Raises
    ------
    InvalidInput
        ``select`` names nothing; the message lists the names.

    Examples
    --------
    >>> selected({"loss": None, "logits": torch.ones(1)}, "logits")
    tensor([1.])
    """
    if select is None:
        return output
    if callable(select):
        return _applied(select, output)
    known = names_of(output)
    if isinstance(select, int) and isinstance(output, Sequence) and -len(output) <= select < len(output):
        return output[select]
    if isinstance(select, str) and select in known:
        return output[select] if isinstance(output, Mapping) else getattr(output, select)
    if isinstance(output, torch.Tensor):
        raise InvalidInput("select", f"{select!r}, of a model that returns one tensor", "select=None")
    need = f"one of {', '.join(map(repr, known))}, or a function of the output" if known else "a function of the output"
    raise InvalidInput("select", f"{select!r}, of a model that returns {kind_of(output)}", need)


def _applied(select: Callable[[Any], Any], output: Any) -> torch.Tensor:
    """Return the tensor that a function of the caller selects."""
    try:
        selection = select(output)
    except (InvalidInput, torch.OutOfMemoryError):
        raise
    except Exception as error:  # code of the user can raise anything
        got = f"a function that raised {type(error).__name__}: {first_line(error)}, of {kind_of(output)}"
        raise InvalidInput("select", got, "a function of the output that returns one tensor") from error
    if not isinstance(selection, torch.Tensor):
        need = "a function of the output that returns one tensor"
        raise InvalidInput("select", f"a function that returns {kind_of(selection)}", need, "wrong-type")
    return selection


def built_by(code: Any) -> Any:
    """Return what the code of a user builds: a module is itself, a function what it returns, awaited if it is async.

    Of a tuple with a single module, such as a model and its tokenizer, the module.

    Examples
    --------
    >>> built_by(lambda: (nn.Linear(2, 1), "tokenizer"))
    Linear(in_features=2, out_features=1, bias=True)
    """
    built = code() if callable(code) and not isinstance(code, nn.Module) else code
    built = _awaited(built) if inspect.iscoroutine(built) else built
    modules = [part for part in built if isinstance(part, nn.Module)] if isinstance(built, tuple) else []
    return modules[0] if len(modules) == 1 else built


def _awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a loop of a thread of its own: in a notebook, this thread's loop is running."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def arguments_of(model: nn.Module) -> list[str]:
    """Return the names of the arguments of a forward pass."""
    forward = (model.adapted_model if isinstance(model, Adapted) else model).forward
    return list(inspect.signature(forward).parameters)


def _most_positions(model: nn.Module) -> int:
    """Return how many positional arguments a forward pass takes."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return sys.maxsize
    return sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )


def names_of(output: Any) -> list[str | int]:
    """Return the names of the tensors in an output: keys, fields or positions."""
    if isinstance(output, Mapping):
        return [key for key, value in output.items() if isinstance(value, torch.Tensor)]
    fields = getattr(output, "_fields", None) or [f.name for f in _fields(output)]
    if isinstance(output, types.SimpleNamespace):
        fields = list(vars(output))
    if fields:
        return [name for name in fields if isinstance(getattr(output, name, None), torch.Tensor)]
    if isinstance(output, tuple | list):
        return [k for k, value in enumerate(output) if isinstance(value, torch.Tensor)]
    return []


def _fields(value: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else ()


@in_memory
def adapted(
    model: nn.Module,
    X: Any,
    Y: Any = None,
    *,
    select: str | int | Callable[[Any], Any] | None = None,
    forward_args: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Any, Any]:
    """Return a model of one array, its inputs and its targets; all three unchanged if they have that form.

    Parameters
    ----------
    model : torch.nn.Module
    X : array, tuple or dict of arrays, Dataset or DataLoader, graphs
        A tuple holds the positional arguments of the forward pass, a dict those by name, each with a row for each
        sample. A Dataset or DataLoader gives samples or batches of these, with the targets last or under "labels"; so
        does a list of tuples or dicts of arrays, one for each sample.
        Graphs of PyTorch Geometric (a batch, a list, a dataset or loader) are one sample each: the array then has their
        numbers, (n, 1), and the model holds them.
    Y : array, optional
        Targets; by default those in X.
    select : str, int or callable, optional
        The output: a key, field or position, or a function of what the model returns.
    forward_args : mapping, optional
        Further keyword arguments of the forward pass, the same for all samples.

    Raises
    ------
    InvalidInput
        Inputs without rows, or with different numbers of them; batches of different structure; samples that differ when
        they are read again; two sets of targets.

    Examples
    --------
    >>> class Sum(nn.Linear):
    ...     def forward(self, left, right):
    ...         return {"out": super().forward(left + right)}
    >>> model, x, _ = adapted(Sum(2, 1), (torch.ones(3, 2), torch.zeros(3, 2)), select="out")
    >>> model(x).shape, [name for name, _ in model.named_parameters()]
    (torch.Size([3, 1]), ['weight', 'bias'])
    """
    if select is not None and (isinstance(select, bool) or not (isinstance(select, str | int) or callable(select))):
        raise InvalidInput("select", kind_of(select), "a name, a position or a function of the output", "wrong-type")
    if forward_args is not None and not isinstance(forward_args, Mapping):
        raise InvalidInput("forward_args", kind_of(forward_args), "a dict of arguments by name", "wrong-type")
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    kind = type(type(model).__name__, (Adapted,), {"__module__": type(model).__module__})
    graphs = graphs_in(X)
    if graphs is not None:
        if hasattr(X, "sampler"):
            open_samples(X)  # refuses a loader that shuffles
        Y = Y if Y is not None else targets_of(graphs)
        return kind(model, [], select, forward_args, GraphBatches(graphs, model)), numbers_of(graphs), Y
    given, given_Y = X, Y
    X, Y = as_arrays(X, Y)
    most = _most_positions(model)
    if X is not given and isinstance(X, tuple) and len(X) > most:  # what comes last are targets
        _one_of(Y if given_Y is not None else None, X[-1])
        got = f"{len(X)} inputs in addition to the targets in each sample, for a forward pass that takes {most}"
        need = f"samples (inputs, targets), with the arguments {', '.join(arguments_of(model)[:most])}"
        raise InvalidInput("X", got, need, "wrong-shape")
    if isinstance(X, tuple) and len(X) == 1 and is_array(X[0]) and X[0].ndim:
        X = X[0]
    if isinstance(X, Mapping):
        label = next((name for name in (LABELS if Y is None else LABELS[:1]) if name in X), None)
        if label is not None and isinstance(X[label], torch.Tensor | np.ndarray | list):
            X, Y = {name: value for name, value in X.items() if name != label}, _one_of(Y, X[label])
        X, parts = _packed(X.items(), model)
    elif isinstance(X, tuple) and len(X) > 1 and all(is_array(part) and part.ndim for part in X):
        X, parts = _packed(enumerate(X), model)
    else:
        parts = []
    if not parts and select is None and not forward_args:
        return model, X, Y
    return kind(model, parts, select, forward_args), X, Y


def as_arrays(X: Any, Y: Any = None) -> tuple[Any, Any]:
    """Return inputs and targets in memory: a Dataset or DataLoader is read, anything else is returned as it is.

    Examples
    --------
    >>> samples = torch.utils.data.TensorDataset(torch.zeros(3, 2), torch.arange(3))
    >>> x, y = as_arrays(torch.utils.data.DataLoader(samples, batch_size=2))
    >>> x.shape, y
    (torch.Size([3, 2]), array([0, 1, 2]))
    """
    if hasattr(X, "x") and hasattr(X, "y") and hasattr(X, "sha256"):  # of alignver.data
        return X.x, _one_of(Y, X.y)
    if isinstance(X, list) and X and _is_sample(X[0]):
        return _gathered(_Samples(X), Y)
    if is_stream(X) and not isinstance(X, Mapping) and not hasattr(X, "tocsr"):  # a sparse matrix
        return _gathered(X, Y)
    return X, Y


def _is_sample(item: Any) -> bool:
    """Whether an entry of a list is a sample with several parts, not a row of numbers."""
    return isinstance(item, Mapping) or (isinstance(item, tuple) and any(is_array(part) and part.ndim for part in item))


class _Samples:
    """A list of samples as a data set, which is not a sequence."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


def _one_of(Y: Any, given: Any) -> Any:
    """Return the targets that come with the inputs, unless there are others."""
    if Y is not None and given is not None:
        raise InvalidInput("Y", "targets in addition to those in X", "one of the two: Y=None", "conflicting-arguments")
    return given if Y is None else Y


def _packed(items: Any, model: nn.Module) -> tuple[torch.Tensor, list[_Part]]:
    """Return inputs side by side, (n, entries), in a dtype that holds all of them, and their shapes."""
    device = next(model.parameters()).device
    tensors: list[tuple[int | str, torch.Tensor]] = []
    for key, value in items:
        where = f"the input {key!r}"
        if value is None or isinstance(value, bool | int | float | str):
            need = f"a row for each sample; forward_args={{{key!r}: ...}} takes what is the same for all"
            raise InvalidInput("X", f"{where} that is {kind_of(value)}", need, "wrong-type")
        try:
            tensors.append((key, as_inputs(value, device)))
        except InvalidInput as error:
            raise InvalidInput("X", f"{where}: {error.got}", error.need, error.code) from error
    if not tensors:
        raise InvalidInput("X", "no inputs", "at least one, with a row for each sample", "wrong-shape")
    first = tensors[0][0]
    for key, tensor in tensors:
        if len(tensor) != len(tensors[0][1]):
            got = f"{len(tensor)} rows of the input {key!r}, but {len(tensors[0][1])} of {first!r}"
            need = "a row for each sample; forward_args takes what is the same for all"
            if any(name == "edge_index" for name, _ in tensors):
                need = "graphs as they come from torch_geometric: X=batch"
            raise InvalidInput("X", got, need, "wrong-shape")
    dtypes = [tensor.dtype for _, tensor in tensors]
    dtype = dtypes[0]
    if any(other != dtype for other in dtypes):
        floating = [other for other in dtypes if other.is_floating_point] or [torch.float64]
        dtype = functools.reduce(torch.promote_types, floating)
        whole = [t for _, t in tensors if not t.is_floating_point() and t.dtype != torch.bool]
        largest = max((int(t.abs().max()) for t in whole), default=0)
        if largest > _EXACT[dtype]:
            dtype = torch.float64
        if largest > _EXACT[dtype]:
            raise InvalidInput("X", "integers beyond 2**53 together with floating-point inputs", "smaller integers")
    parts = [_Part(key, tuple(tensor.shape[1:]), tensor.dtype) for key, tensor in tensors]
    return torch.cat([tensor.reshape(len(tensor), -1).to(dtype) for _, tensor in tensors], 1), parts


def _gathered(X: Any, Y: Any) -> tuple[Any, Any]:
    """Read a Dataset or DataLoader to its end, twice, and return its inputs and targets."""
    open_samples(X)  # refuses what can be read once, and a loader that shuffles
    state = torch.get_rng_state()
    try:
        with reading_samples():
            inputs, targets = _read(X, Y is None)
        try:
            with reading_samples():
                again, others = _read(X, Y is None)
        except _NoSamples as error:
            got = f"{len(next(iter(inputs.values())))} samples, then none when read again"
            raise InvalidInput("X", got, "a Dataset or DataLoader that can be read twice") from error
    finally:
        torch.set_rng_state(state)  # a DataLoader draws a seed each time that it is read
    for key, value in inputs.items():
        if not _same(value, again[key]):
            order = value.shape == again[key].shape and torch.equal(*(t.sort(0).values for t in (value, again[key])))
            got = (
                "the samples in another order when read again: it shuffles"
                if order
                else "other samples when read again"
            )
            need = "samples that are the same each time they are read: shuffle=False, and transforms without randomness"
            raise InvalidInput("X", got, need)
    if targets is not None and not np.array_equal(targets, others):
        with contextlib.suppress(TypeError):  # texts have no NaN
            if np.array_equal(targets, others, equal_nan=True):
                others = targets
        if others is not targets:
            need = "targets that are the same each time they are read"
            raise InvalidInput("Y", "other targets when read again", need)
    named = isinstance(next(iter(inputs)), str)
    X = inputs[None] if list(inputs) == [None] else inputs if named else tuple(inputs.values())
    return X, _one_of(Y, targets)


class _NoSamples(InvalidInput):
    """A stream without samples."""


def _same(value: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal; NaN, which is refused later, is equal to itself."""
    if torch.equal(value, other) or value.shape != other.shape:
        return torch.equal(value, other)
    return bool(((value == other) | ((value != value) & (other != other))).all())


def _read(X: Any, labelled: bool) -> tuple[dict[Any, torch.Tensor], Any]:
    columns: dict[Any, list[torch.Tensor]] = {}
    targets: list[Any] = []
    batched = hasattr(X, "dataset") and hasattr(X, "__iter__")
    for count, item in enumerate(_items(X)):
        parts, label = _split(item, labelled, batched=batched)
        where = f"{'batch' if batched else 'sample'} {count}"
        if columns and set(columns) != set(parts):
            got = f"{where} with the inputs {_listed(parts)}, but {_listed(columns)} before"
            raise InvalidInput("X", got, "samples of one structure", "wrong-shape")
        for key, value in parts.items():
            tensor = _tensor_of(value, where)
            tensor = tensor if batched else tensor[None]
            held = columns.setdefault(key, [])
            if held and (held[0].shape[1:] != tensor.shape[1:] or held[0].dtype != tensor.dtype):
                before = f"{tuple(held[0].shape[1:])} and {dtype_name(held[0].dtype)} before"
                got = f"{where} of shape {tuple(tensor.shape[1:])} and {dtype_name(tensor.dtype)}, but {before}"
                raise InvalidInput("X", got, "samples of one shape and dtype", "wrong-shape")
            held.append(tensor)
        if (label is None) != (not targets) and count:
            raise InvalidInput("X", f"samples with and without targets (at {count})", "pairs (x, y), or x alone")
        if label is not None and batched and not np.ndim(label):
            got = "a DataLoader whose batches have one target"
            raise InvalidInput("X", got, "batches, with a target for each sample: batch_size=1 or more", "wrong-shape")
        if label is not None:
            targets += list(label) if batched else [label]
    if not columns:
        raise _NoSamples("X", "no samples", "at least one", "wrong-shape")
    if batched:
        require_all(X, sum(map(len, next(iter(columns.values())))))
    Y = np.stack([np.asarray(label) for label in targets]) if targets else None
    return {key: torch.cat(held) for key, held in columns.items()}, Y


def _listed(keys: Any) -> str:
    return ", ".join("x" if key is None else repr(key) for key in keys)


def _items(X: Any) -> Iterator[Any]:
    return iter(X) if hasattr(X, "__iter__") else (X[k] for k in range(len(X)))


def _tensor_of(value: Any, where: str) -> torch.Tensor:
    """Return an input of a sample or batch as a tensor."""
    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{where} with {kind_of(value)} that does not form an array"
        need = "samples of numbers, of one shape; from a DataLoader, tuples or dicts of arrays (collate_fn)"
        raise InvalidInput("X", got, need, "wrong-type") from error


def _split(item: Any, labelled: bool, *, batched: bool) -> tuple[dict[Any, Any], Any]:
    """Return the inputs of a sample or batch by position or name, None for the only one, and its targets."""
    if isinstance(item, Mapping):
        label = next((name for name in LABELS if name in item), None) if labelled else None
        return {k: v for k, v in item.items() if k != label and v is not None}, None if label is None else item[label]
    if isinstance(item, tuple | list):
        *inputs, label = item if labelled and len(item) > 1 else (*item, None)
        nested = inputs[0] if len(inputs) == 1 else None
        if isinstance(nested, Mapping | tuple) or (batched and is_collated(nested)):  # ((x1, x2), y)
            return _split(nested, False, batched=batched)[0], label
        return (dict(enumerate(inputs)) if len(inputs) > 1 else {None: inputs[0]}), label
    return {None: item}, None


_LIBRARY = "torch_geometric"


def _is_graph(value: Any) -> bool:
    return type(value).__module__.startswith(_LIBRARY) and hasattr(value, "edge_index") and hasattr(value, "keys")


def graphs_in(X: Any) -> list[Any] | None:
    """Return the graphs of a batch, a list, a dataset or a loader, in their order; None for other inputs."""
    if _is_graph(X):
        return list(X.to_data_list()) if hasattr(X, "to_data_list") else [X]
    source = getattr(X, "dataset", X)
    try:
        first = source[0]
    except Exception:  # an object that is not a sequence may raise anything
        return None
    if not _is_graph(first):
        return None
    if source is not X:  # a loader: its own order
        return [graph for batch in X for graph in graphs_in(batch) or []]
    return [source[k] for k in range(len(source))]


def numbers_of(graphs: Sequence[Any]) -> torch.Tensor:
    """Return a number for each graph, (n, 1): that of the first one with the same tensors.

    Raises
    ------
    InvalidInput
        Entries that are not finite.
    """
    numbers: list[int] = []
    for k, graph in enumerate(graphs):
        for key, value in graph.to_dict().items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InvalidInput("X", f"NaN or Inf in {key!r} of graph {k}", "finite entries", "not-finite")
        same = (j for j in dict.fromkeys(numbers) if _equal(graphs[j], graph))
        numbers.append(next(same, k))
    return torch.tensor(numbers, dtype=torch.int64)[:, None]


def _equal(first: Any, second: Any) -> bool:
    """Whether two graphs have the same entries, but for their targets."""
    one, other = first.to_dict(), second.to_dict()
    keys = (one.keys() | other.keys()) - {"y"}
    return all(key in one and key in other and _equal_entries(one[key], other[key]) for key in keys)


def _equal_entries(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


class GraphBatches:
    """Calls a model of PyTorch Geometric on batches of the graphs with given numbers, one output row a graph.

    Graphs have different sizes, so that they form no array. The adapted model holds them and takes their numbers,
    (n, 1); equal graphs have one number, that of the first of them.

    A forward pass with several arguments gets the tensors of the batch that have their names: ``x``, ``edge_index``,
    ``batch``; one with a single argument gets the batch.
    """

    def __init__(self, graphs: Sequence[Any], model: nn.Module) -> None:
        self.graphs = list(graphs)
        self.join = importlib.import_module(f"{_LIBRARY}.data").Batch.from_data_list
        whole = self.join(self.graphs)
        names = [
            name
            for name, parameter in inspect.signature(model.forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        self.names = [name for name in names if name in whole] if len(names) > 1 else []

    def __call__(self, model: nn.Module, numbers: torch.Tensor, **extra: Any) -> Any:
        """Run a model on the batch of some graphs."""
        parameter = next(model.parameters())
        batch = self.join([self.graphs[int(k)] for k in numbers.reshape(-1).tolist()]).to(parameter.device)
        for key, value in batch.to_dict().items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != parameter.dtype:
                batch[key] = value.to(parameter.dtype)
        if not self.names:
            return model(batch, **extra)
        return model(**{name: batch[name] for name in self.names}, **extra)


def targets_of(graphs: Sequence[Any]) -> torch.Tensor | None:
    """Return the targets that the graphs hold, one row a graph, or None."""
    targets = [graph.y for graph in graphs if isinstance(getattr(graph, "y", None), torch.Tensor)]
    if len(targets) < len(graphs):
        return None
    kinds = sorted({f"{y.numel()} of {dtype_name(y.dtype)}" for y in targets})
    if len(kinds) > 1:
        raise InvalidInput("Y", f"targets of {' and '.join(kinds[:3])}", "one row of targets a graph", "wrong-shape")
    rows = torch.stack([y.reshape(-1) for y in targets])
    return rows[:, 0] if rows.shape[1] == 1 else rows
