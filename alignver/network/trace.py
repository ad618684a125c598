"""A model as a graph of operators: traced once by ``torch.export``, with tensors that share memory as one leaf.

The graph is the one that :mod:`alignver.kernel.network.graph` reads. It is made from a copy of the model in eval mode;
hooks, replaced forwards, raw access to parameters, mutation and the arithmetic of shapes are resolved by the trace.
Softplus, GELU, Mish, log-sigmoid, logsumexp, softmax, norms and attention stay single nodes. The trace is then compared
with the model: at its own theta and at a random one both must give the same outputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import operator
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from alignver import require
from alignver.errors import InvalidInput, first_line
from alignver.kernel.network.degrees import is_random
from alignver.kernel.network.graph import Graph, Ref, encode, parse
from alignver.limits import in_memory, require_time
from alignver.network.compare import (
    ROWS,
    evaluate,
    hidden_derivatives,
    in_float64,
    numbers,
    numbers_in,
    require_same,
    require_same_in_batches,
    require_same_in_order,
    rounding_room,
)
from alignver.network.copies import copied
from alignver.network.inputs import as_inputs, dtype_name, without_fused_layers
from alignver.network.leaves import Leaves, facts, fold, refused
from alignver.network.preserve_state import preserve_random_states

_COMPARED = 32  # samples, at least, on which the model has to give the same in every order
_DROPPED = {"device", "layout", "pin_memory", "memory_format", "generator", "non_blocking", "cudnn_enabled"}
_SILENT = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size")
_SEEDED = ("scaled_dot_product_attention", "gru", "lstm", "rnn_tanh", "rnn_relu", "dropout", "native_dropout",
           "feature_dropout", "alpha_dropout", "feature_alpha_dropout")  # fmt: skip
_LIKE = {"zeros_like": "zeros", "new_zeros": "zeros", "ones_like": "ones", "new_ones": "ones", "full_like": "full",
         "new_full": "full"}  # fmt: skip
_OPERATORS = {f"__{name}__": f"bitwise_{name}" for name in ("and", "or", "xor")}
_CASTS = (("to", "dtype_layout"), ("to", "device"), ("to", "other"), ("type_as", "default"))
_UNCHANGING = ("to", "_to_copy", "type_as", "detach", "clone", "contiguous", "alias")
_MOST_INTEGER = 2**53


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkGraph:
    """A traced model.

    Attributes
    ----------
    graph : Graph
        Operators with leaves, shapes, dtypes and modules.
    data : (bytes,) uint8
        The same as the document that certificates contain.
    names : tuple of str
        The trainable parameters, by their first names.
    shape : tuple of int
        Of the batch of inputs.
    aliases : tuple of tuple of str
        Names of different tensors that share memory.
    hidden : tuple of str
        Where autograd's derivatives are not those of the function: detach, custom backward passes, hooks on gradients.
    tensors : mapping of int to torch.Tensor
        The values of the leaves, by the index of their node.
    finite : bool
        Whether the outputs at the model's theta are finite.
    """

    graph: Graph
    data: Any
    names: tuple[str, ...]
    shape: tuple[int, ...]
    aliases: tuple[tuple[str, ...], ...]
    hidden: tuple[str, ...]
    tensors: Mapping[int, torch.Tensor]
    finite: bool = True

    def evaluate(
        self, x: torch.Tensor, tensors: Mapping[int, torch.Tensor] | None = None, *, defined: bool = False
    ) -> torch.Tensor:
        """Run the graph on inputs of its shape, on the CPU, with the given values of the leaves.

        With ``defined``, NaN or an infinity of finite operands without theta, or a divisor without theta that is 0,
        raises an exception.
        """
        return evaluate(self.graph, self.tensors if tensors is None else tensors, x, defined=defined)


@in_memory
def trace_model(model: nn.Module, X: Any, *, rows: int = ROWS) -> NetworkGraph:
    """Return the graph of a model for a batch of inputs.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode; copied, not changed.
    X : (n, ...) array or tensor
        The first rows give shape and dtype; floating-point inputs are cast to the model's dtype. The graph is that of
        every input of this shape.
    rows : int
        The number of samples in a batch of the graph, at most those of X.

    Returns
    -------
    NetworkGraph

    Raises
    ------
    InvalidInput
        The model cannot be copied or traced: control flow on data, code outside torch, mutation of parameters or
        buffers, several outputs; or the trace and the model disagree. The message names the reason and, if it is known,
        the module.

    Examples
    --------
    >>> import torch
    >>> traced = trace_model(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()).eval(), torch.ones(5, 2))
    >>> [node.op for node in traced.graph.nodes]
    ['parameter', 'parameter', 'input', 'aten.linear.default', 'aten.tanh.default']
    """
    require_time("tracing the network")
    require.instance("model", model, nn.Module, "a torch.nn.Module")
    device, dtype = _placement(model)
    more = as_inputs(X, device)[: max(rows, _COMPARED)]
    more = more.to(dtype) if more.is_floating_point() and dtype is not None else more
    x = as_inputs(X, device)[:rows].to(more.dtype)
    twin = copied(model)
    with _quiet(), preserve_random_states(), without_fused_layers(twin):
        exported, program = _exported(twin, x)
        try:
            builder = _Builder(model, twin, program, x)
            builder.hidden += builder.without_gradients(exported)
            traced = builder.build()
            counts = numbers_in(twin)
            derivatives, outputs = hidden_derivatives(model, twin, x)
            hidden = (*traced.hidden, *derivatives)
            if not any(is_random(node) for node in traced.graph.nodes):  # else no two runs agree
                traced = dataclasses.replace(traced, finite=_compared(traced, twin, x, more, outputs, counts))
        except InvalidInput:
            raise
        except Exception as error:  # an operator in a form that is not expected, or the user's code
            raise refused(model, f"{type(error).__name__}: {first_line(error)[:200]}") from error
    return dataclasses.replace(traced, hidden=tuple(dict.fromkeys(hidden)))


def _compared(
    traced: NetworkGraph,
    twin: nn.Module,
    x: torch.Tensor,
    more: torch.Tensor,
    outputs: Any,
    counts: Mapping[Any, float],
) -> bool:
    """Require the model and its trace to be the same function; return whether the outputs are finite.

    Outputs that differ by more than a few roundings are compared in float64, with room for rounding errors.
    """
    theta = [parameter.detach().clone() for parameter in twin.parameters()]
    try:
        require_same_in_batches(twin, more)
        finite = require_same(traced.graph, traced.tensors, twin, x, outputs, counts)
        _restore(twin, theta)
        require_same_in_order(twin, more)
        return finite
    except InvalidInput as error:
        if not (x.is_floating_point() and isinstance(outputs, torch.Tensor) and outputs.is_floating_point()):
            raise
        _restore(twin, theta)
        try:
            graph, leaves, wide = in_float64(traced.graph, traced.tensors, twin)
            room, counts = rounding_room(wide, more), numbers_in(wide)
            require_same_in_batches(wide, more.double(), room)
            with torch.no_grad():
                outputs = wide(x.double())
            finite = require_same(graph, leaves, wide, x.double(), outputs, counts, room)
            require_same_in_order(wide, more.double(), room)
            return finite
        except Exception:  # the outputs do differ, or code that needs its own dtype
            raise error from None
    finally:
        _restore(twin, theta)  # the leaves have the memory of the copy


@torch.no_grad()
def _restore(model: nn.Module, theta: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(model.parameters(), theta, strict=True):
        parameter.copy_(value)


def _placement(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    tensors = [*model.parameters(), *model.buffers()]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    return (tensors[0].device if tensors else torch.device("cpu"), floating[0].dtype if floating else None)


class _Muted(logging.Filter):
    """A stream, or a filter of log records, without what one thread writes."""

    def __init__(self, stream: Any = None) -> None:
        super().__init__()
        self.stream, self.thread = stream, threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether another thread logs this."""
        return record.thread != self.thread

    def write(self, text: str) -> int:
        """Write what another thread writes."""
        return len(text) if threading.get_ident() == self.thread else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["stream"], name)


_WAIT = 0.2  # seconds between two looks at the limits
_tracer = threading.RLock()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait for the other threads that trace, within the limit of the call's time."""
    while not _tracer.acquire(timeout=_WAIT):
        require_time("waiting for another thread's trace")
    try:
        yield
    finally:
        _tracer.release()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's tracer logs, prints and warns of in this thread, about its internals; one at a time."""
    with _alone(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("torch")]
        handlers = dict.fromkeys(handler for logger in (logging.root, *known) for handler in logger.handlers)
        muted = _Muted()
        streams = {name: _Muted(getattr(sys, name)) for name in ("stdout", "stderr") if getattr(sys, name) is not None}
        for handler in handlers:
            handler.addFilter(muted)
        for name, stream in streams.items():
            setattr(sys, name, stream)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(muted)
            for name, stream in streams.items():
                stream.thread = 0  # another thread may keep it
                if getattr(sys, name) is stream:
                    setattr(sys, name, stream.stream)


def _exported(model: nn.Module, x: torch.Tensor) -> tuple[Any, Any]:
    """Return the exported program, and the one without mutation.

    The message of a refusal names the innermost module that was running.
    """
    running: list[str] = []
    with torch.enable_grad():
        try:
            exported = torch.export.export(model, (x.clone(),), strict=False)
            return exported, exported.run_decompositions({}) if _mutates(exported.graph_module) else exported
        except Exception as error:  # the user's code runs on fake tensors: it can raise anything
            with contextlib.suppress(Exception), _following(model, running):
                torch.export.export(model, (x.clone(),), strict=False)
            place = f" in {running[-1]!r}" if running and running[-1] else ""
            raise refused(model, f"{type(error).__name__}{place}: {first_line(error)[:200]}") from error


def _mutates(module: fx.GraphModule) -> bool:
    """Whether a graph, or one inside it, has an operator that writes to memory."""
    graphs = [part.graph for part in module.modules() if isinstance(part, fx.GraphModule)]
    targets = [
        node.target for graph in graphs for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)
    ]
    return any(target._schema.is_mutable for target in targets)


@contextlib.contextmanager
def _following(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Record the modules that are running, the innermost last."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        handles.append(module.register_forward_hook(lambda *_: running.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Builder:
    """Turn an exported program into the kernel's form of a graph."""

    def __init__(self, model: nn.Module, twin: nn.Module, program: Any, x: torch.Tensor) -> None:
        self.model, self.twin, self.program, self.x = model, twin, program, x
        self.entries: list[dict[str, Any]] = []
        self.tensors: dict[int, torch.Tensor] = {}  # values of leaves
        self.values: dict[int, torch.Tensor] = {}  # values of what depends on constants only
        self.hidden: list[str] = []

    def without_gradients(self, program: Any) -> list[str]:
        """Return the modules that compute with trainable parameters under no_grad."""
        specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        trainable = {name for name, parameter in self.twin.named_parameters() if parameter.requires_grad}
        reached: set[fx.Node] = set()
        hidden = []
        for node in program.graph.nodes:
            if node.op == "placeholder":
                depends = specs[node.name].kind.name == "PARAMETER" and specs[node.name].target in trainable
            else:
                depends = any(part in reached for part in node.all_input_nodes)
            if depends:
                reached.add(node)
                if str(node.target) == "wrap_with_set_grad_enabled" and not node.args[0]:
                    hidden.append("no_grad" + (f" in {_module(node)!r}" if _module(node) else ""))
        return hidden

    def build(self) -> NetworkGraph:
        """Return the graph without nodes that the output does not need."""
        signature = self.program.graph_signature
        for spec in signature.output_specs:
            if spec.kind.name in ("PARAMETER_MUTATION", "BUFFER_MUTATION"):
                raise refused(
                    self.twin, f"it writes to {spec.target!r}", "a forward pass that does not change the model"
                )
        captured = {
            spec.arg.name: self.program.constants[spec.target]
            for spec in signature.input_specs
            if spec.kind.name == "CONSTANT_TENSOR"
        }
        leaves = Leaves(self.model, self.twin, list(captured.values()))
        places: dict[str, int] = {}
        specs = {spec.arg.name: spec for spec in signature.input_specs}
        for name, parameter in self.twin.named_parameters():
            self._leaf(leaves.parameter(name, parameter), parameter)
        for node in self.program.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            kind = spec.kind.name
            if kind == "USER_INPUT":
                places[node.name] = self._add("input", {}, [self.x], "")
                continue
            if kind not in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
                raise refused(self.twin, f"it captures a {kind.lower().replace('_', ' ')}")
            tensor = captured[node.name] if kind == "CONSTANT_TENSOR" else _attribute(self.twin, spec.target)
            place = self._parameter_index(tensor)
            places[node.name] = self._constant(spec.target, tensor, leaves) if place is None else place
        outputs = self._run(self.program.graph, places)
        results = [spec.arg.name for spec in signature.output_specs if spec.kind.name == "USER_OUTPUT"]
        if len(results) != 1 or not isinstance(outputs, tuple | list):
            raise refused(self.twin, f"it returns {len(results)} tensors", "a model that returns one tensor")
        last = outputs[[spec.kind.name for spec in signature.output_specs].index("USER_OUTPUT")]
        if not isinstance(last, Ref):
            raise refused(self.twin, "its output is not a tensor", "a model that returns one tensor")
        return self._finish(last.node, leaves)

    def _finish(self, output: int, leaves: Leaves) -> NetworkGraph:
        needed = {output}
        for index in range(len(self.entries) - 1, -1, -1):
            if index in needed or self.entries[index]["op"] in ("parameter", "input"):
                needed |= {index, *_referred(self.entries[index]["args"])}
        renumbered = {old: new for new, old in enumerate(sorted(needed))}
        nodes = [_renumbered(self.entries[old], renumbered) for old in sorted(needed)]
        data = encode({"nodes": nodes, "outputs": [renumbered[output]]})
        tensors = {renumbered[old]: tensor.detach() for old, tensor in self.tensors.items() if old in needed}
        names = tuple(name for name, p in self.twin.named_parameters() if p.requires_grad)
        shape = tuple(self.x.shape)
        return NetworkGraph(parse(data), data, names, shape, leaves.aliases(), tuple(self.hidden), tensors)

    def _add(self, op: str, args: Mapping[str, Any], results: Sequence[Any], module: str) -> int:
        out = [[dtype_name(result.dtype), [int(size) for size in result.shape]] for result in results]
        self.entries.append({"op": op, "args": dict(args), "out": out, "module": module})
        return len(self.entries) - 1

    def _leaf(self, args: Mapping[str, Any], tensor: torch.Tensor) -> int:
        _require_real(self.twin, args["name"], tensor)
        index = self._add("parameter", args, [tensor], "")
        self.tensors[index] = tensor
        return index

    def _parameter_index(self, tensor: torch.Tensor) -> int | None:
        return next((index for index, leaf in self.tensors.items() if leaf is tensor), None)

    def _constant(self, name: str, tensor: torch.Tensor, leaves: Leaves) -> int:
        leaf = leaves.shared(name, tensor)
        if leaf is not None:
            return self._leaf(leaf, tensor)
        _require_real(self.twin, name, tensor)
        index = self._add("constant", {"name": name, **facts(tensor)}, [tensor], "")
        self.tensors[index] = self.values[index] = tensor.detach()
        return index

    def _run(self, graph: fx.Graph, places: Mapping[str, int]) -> Any:
        """Add the nodes of a graph whose placeholders are the given nodes; return what it returns."""
        known: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                known[node] = Ref(places[node.name])
            elif node.op == "output":
                return fx.map_arg(node.args[0], lambda part: known[part])
            elif node.op == "get_attr":
                known[node] = operator.attrgetter(node.target)(graph.owning_module)
            else:
                known[node] = self._call(node, known)
        return None

    def _call(self, node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
        target: Any = node.target
        args: Any = fx.map_arg(node.args, lambda part: known[part])
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._region(node, args)
        if target is operator.getitem:
            source, position = args
            if not isinstance(source, Ref):
                return source[position]
            return Ref(self._add("getitem", {"self": source, "index": position}, [node.meta["val"]], _module(node)))
        if not isinstance(target, torch._ops.OpOverload):
            raise refused(self.twin, f"the trace has {target}, which is not an operator of torch")
        name = target._schema.name.partition("::")[2]
        value = node.meta.get("val")
        if name in _SILENT or value is None:
            return None
        if not isinstance(value, torch.Tensor | tuple | list):
            raise refused(self.twin, f"{name} in {_module(node)!r} reads a number from a tensor")
        kwargs = fx.map_arg(dict(node.kwargs), lambda part: known[part])
        return Ref(self._operator(node, target, self._arguments(target, args, kwargs), value))

    def _region(self, node: fx.Node, args: Any) -> Any:
        """Add the nodes of a region with another gradient mode or autocast, which are no part of the function."""
        name = str(node.target)
        wrapped = [part for part in args if isinstance(part, fx.GraphModule)]
        if name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast") or len(wrapped) != 1:
            raise refused(self.twin, f"the trace has the control flow {name!r}")
        position = next(k for k, part in enumerate(args) if part is wrapped[0])
        inner = [part for part in wrapped[0].graph.nodes if part.op == "placeholder"]
        places = {part.name: ref.node for part, ref in zip(inner, args[position + 1 :], strict=True)}
        return self._run(wrapped[0].graph, places)

    def _arguments(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for position, argument in enumerate(target._schema.arguments):
            value = args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value)
            if value is not None and argument.name not in _DROPPED:
                named[argument.name] = value
        return named

    def _operator(self, node: fx.Node, target: Any, args: dict[str, Any], value: Any) -> int:
        space, _, name = target._schema.name.partition("::")
        name = _OPERATORS.get(name, name)
        op, module = f"{space}.{name}.{target._overloadname}", _module(node)
        results = [value] if isinstance(value, torch.Tensor) else [part for part in value if part is not None]
        if (name, target._overloadname) in _CASTS:  # a graph has no devices and layouts
            op, name, args = "aten.to.dtype", "to", {"self": args["self"], "dtype": results[0].dtype}
        if name == "rms_norm" and "eps" not in args:
            args["eps"] = float(torch.finfo(results[0].dtype).eps)
        large = (part for part in numbers(args) if isinstance(part, int) and abs(part) > _MOST_INTEGER)
        if any(part != sys.maxsize for part in large):  # which stands for the end of an axis
            raise refused(self.twin, f"{name} in {module!r} has an integer beyond 2**53")
        if torch.Tag.nondeterministic_seeded in target.tags and name not in _SEEDED:
            op = f"random.{name}.{target._overloadname}"
        plain = _LIKE.get(name)
        if plain is not None and not isinstance(args.get("fill_value"), Ref):  # only shape and dtype of a tensor enter
            fill = {"fill_value": args["fill_value"]} if plain == "full" else {}
            op, name = f"aten.{plain}.default", plain
            args = {"size": [int(size) for size in results[0].shape], **fill, "dtype": results[0].dtype}
        if name in ("reshape_as", "view_as"):
            op, name, args = "aten.reshape.default", "reshape", {"self": args["self"], "shape": list(results[0].shape)}
        self._note(name, args, module)
        folded = fold(op, name, args, self.values)
        if folded is not None:
            if name in _UNCHANGING:  # a buffer in another dtype is still that buffer
                name = self.entries[args["self"].node]["args"]["name"]
            index = self._add("constant", {"name": name, **facts(folded)}, [folded], module)
            self.tensors[index] = self.values[index] = folded
            return index
        return self._add(op, {key: _plain(part) for key, part in args.items()}, results, module)

    def _note(self, name: str, args: Mapping[str, Any], module: str) -> None:
        """Record an operator whose derivative autograd does not compute."""
        place = f" in {module!r}" if module else ""
        if name in ("detach", "lift_fresh_copy") and any(self._depends(k) for k in _referred(args)):
            self.hidden.append(f"detach{place}")
        if name == "embedding" and args.get("padding_idx", -1) >= 0:
            self.hidden.append(f"padding_idx{place}: autograd has no derivative for this row")
        if name == "embedding" and args.get("scale_grad_by_freq"):
            self.hidden.append(f"scale_grad_by_freq{place}")

    def _depends(self, index: int) -> bool:
        """Whether a node depends on a trainable parameter."""
        stack, seen = [index], set[int]()
        while stack:
            entry = self.entries[place := stack.pop()]
            if entry["op"] == "parameter" and entry["args"]["trainable"]:
                return True
            stack += [k for k in _referred(entry["args"]) if k not in seen]
            seen.add(place)
        return False


def _module(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _attribute(model: nn.Module, name: str) -> torch.Tensor:
    *path, last = name.split(".")
    tensor: torch.Tensor = getattr(model.get_submodule(".".join(path)), last)
    return tensor


def _require_real(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
        raise refused(model, f"{name!r} is complex, quantized or sparse", "dense real parameters and buffers")
    if tensor.dtype in (torch.int64, torch.uint64) and tensor.numel() and int(tensor.abs().max()) > _MOST_INTEGER:
        raise refused(model, f"{name!r} has integers beyond 2**53")


def _plain(value: Any) -> Any:
    """Return an argument in the form of the document."""
    if isinstance(value, Ref):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, float) and not np.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"dtype": str(value)}


def _referred(value: Any) -> Iterator[int]:
    if isinstance(value, Ref):
        yield value.node
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _referred(item)


def _renumbered(entry: Mapping[str, Any], places: Mapping[int, int]) -> dict[str, Any]:
    def moved(value: Any) -> Any:
        if isinstance(value, Ref):
            return {"node": places[value.node]}
        if isinstance(value, Mapping):
            return {key: moved(item) for key, item in value.items()}
        return [moved(item) for item in value] if isinstance(value, tuple | list) else value

    return {**entry, "args": moved(entry["args"])}
