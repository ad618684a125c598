"""Kinds of models behind reports, with their relatives: each is checked as any other, or its remedy is run here."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence

import alignver as av
from alignver.errors import InvalidInput
from tests.reference import fingerprint

torch.manual_seed(0)
X, Y = torch.randn(6, 3), torch.arange(6) % 2


class Net(nn.Module):
    """Two layers, with a function between them and further attributes."""

    def __init__(self, between=torch.tanh, width: int = 8, **further) -> None:
        super().__init__()
        self.a, self.h, self.between = nn.Linear(3, 8), nn.Linear(width, 2), between
        for name, value in further.items():
            setattr(self, name, value)
        self.last = None

    def forward(self, x):
        return self.h(self.between(self.a(x)))


class Caches(Net):
    def forward(self, x):
        self.last = self.between(self.a(x))
        return self.h(self.last)


class Positive(Net):
    """Defined where a parameter is positive."""

    def __init__(self, distribution: bool) -> None:
        super().__init__(scale=nn.Parameter(torch.full((8,), 0.05)), distribution=distribution)

    def forward(self, x):
        z = self.between(self.a(x))
        if self.distribution:
            return self.h(z * torch.distributions.Normal(0.0, self.scale).entropy())
        if bool((self.scale <= 0.0).any()):
            raise ValueError("a scale that is not positive")
        return self.h(z / self.scale)


class Complex(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(8), torch.arange(8.0)))

    def forward(self, x):
        return self.h(torch.view_as_real(self.a(x) * self.turn).sum(-1))


class Autocast(Net):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class Flow(Net):
    """The gradient of a network by its input."""

    def forward(self, x):
        x = x.requires_grad_()
        return torch.autograd.grad(super().forward(x).sum(), x, create_graph=True)[0][:, :2]


class Graph(Net):
    """A constant sparse matrix that is no buffer."""

    def __init__(self, csr: bool) -> None:
        links = torch.eye(3) + torch.ones(3, 3).triu()
        super().__init__(links=links.to_sparse_csr() if csr else links.to_sparse())

    def forward(self, x):
        return super().forward((self.links.to(x.dtype) @ x.T).T)


class Draws(Net):
    """Draws numbers that it does not use, from a generator of its own."""

    def forward(self, x):
        numbers = self.numbers
        drawn = torch.rand(1, generator=numbers) if isinstance(numbers, torch.Generator) else numbers.random()
        return super().forward(x) + 0.0 * float(drawn)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.h = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        lengths = (x != 0.0).sum(1).clamp(min=1).cpu()
        rows = pack_padded_sequence(x[..., None], lengths, batch_first=True, enforce_sorted=False)
        return self.h(self.core(rows)[1][0])


def chain(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, nn.Tanh(), nn.Linear(8, 2))


def pruned() -> nn.Module:
    net = chain(nn.Linear(3, 8))
    prune.random_unstructured(net[0], "weight", 0.3)
    return net


def compiled_forward() -> nn.Module:
    net = chain(nn.Linear(3, 8))
    net.forward = torch.compile(net.forward, backend="eager")
    return net


KINDS = {
    "weight norm by a hook": lambda: chain(nn.utils.weight_norm(nn.Linear(3, 8))),
    "weight norm": lambda: chain(parametrizations.weight_norm(nn.Linear(3, 8))),
    "orthogonal": lambda: chain(parametrizations.orthogonal(nn.Linear(3, 8))),
    "spectral norm": lambda: chain(parametrizations.spectral_norm(nn.Linear(3, 8))).eval(),
    "spectral norm by a hook": lambda: chain(nn.utils.spectral_norm(nn.Linear(3, 8))).eval(),
    "pruned": pruned,
    "a cached activation": Caches,
    "a lock": lambda: Net(lock=threading.Lock()),
    "a generator": lambda: Net(numbers=(k for k in range(3))),
    "a domain": lambda: Positive(False),
    "a distribution": lambda: Positive(True),
    "a complex buffer": Complex,
    "autocast inside": Autocast,
    "a gradient inside": Flow,
    "packed sequences": Packed,
    "a scripted layer": lambda: chain(torch.jit.script(nn.Linear(3, 8))),
    "a sparse matrix": lambda: Graph(False),
    "a sparse matrix in rows": lambda: Graph(True),
    "compiled": lambda: torch.compile(chain(nn.Linear(3, 8))),
    "a compiled forward pass": compiled_forward,
    "data parallel": lambda: nn.DataParallel(chain(nn.Linear(3, 8))),
}
ANALYTIC = {"pruned", "a cached activation", "a lock", "a generator", "autocast inside", "compiled"}  # proved to be
ANALYTIC |= {"a compiled forward pass", "data parallel"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_every_call_takes_it(name):
    model = KINDS[name]()
    if name != "compiled":
        model(X.clone())  # what it caches is part of a graph
    scripted = name == "a scripted layer"
    before = None if scripted else fingerprint(model)
    weights = [parameter.clone() for parameter in model.parameters()]
    J = av.jacobian(model, X)
    M = av.gram(model, X)
    assert float((M - J @ J.T).norm()) <= 1e-12 * float(M.norm())
    assert av.check_alignment(model, X, Y, loss="cross_entropy").measured["n"] == 6
    assert av.check_common_structure(model, X).verdict == "HOLDS"
    assert av.check_analytic(model, X).verdict == ("HOLDS" if name in ANALYTIC else "UNDECIDED")
    assert av.AlignmentTracker(model, X, Y, loss="cross_entropy").update().loss > 0.0
    assert before is None or fingerprint(model) == before
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))


GENERATORS = {
    "torch": (torch.Generator, lambda generator: generator.get_state().tolist()),
    "numpy": (np.random.default_rng, lambda generator: generator.bit_generator.state),
    "python": (random.Random, lambda generator: generator.getstate()),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_of_a_model_are_as_before(name):
    build, state = GENERATORS[name]
    model = Draws(numbers=build())
    before = state(model.numbers)
    report = av.check_model(model, X, Y, loss="ce", layer="a")
    av.AlignmentTracker(model, X, Y, loss="ce", network_at=[0]).update()
    assert report["alignment"].verdict == "HOLDS"
    assert state(model.numbers) == before


class Scales(Net):
    """Writes to its input."""

    def forward(self, x):
        return super().forward(x.mul_(2.0))


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_inputs_are_not_written_to(kind):
    """Where the dtype is that of the computation, the model gets the caller's memory if nobody copies it."""
    torch.manual_seed(0)
    model, plain = Scales().double(), Net().double()
    plain.load_state_dict(model.state_dict())
    x = X.double().numpy().copy() if kind == "array" else X.double()
    before = X.double().numpy().copy()
    report = av.check_model(model, x, Y, loss="ce")
    av.AlignmentTracker(model, x, Y, loss="ce").update()
    assert np.array_equal(np.asarray(x), before)
    assert report["exploration"].code == "exploration-refused"  # what the first layer reads is not the input
    J = av.jacobian(plain, 2.0 * torch.as_tensor(before))
    assert torch.allclose(av.gram(model, x), J @ J.T)
    av.check_safe_exploration(model, X=x, layer="a")
    assert np.array_equal(np.asarray(x), before)


@pytest.mark.filterwarnings("ignore:torch")  # that its quantization is deprecated
def test_remedies_of_parameters_and_buffers():
    graph = Net()
    graph.register_buffer("links", torch.eye(3).to_sparse())
    with pytest.raises(
        InvalidInput, match=r"buffer 'links' that is sparse; needs .*model\.links = model\.links\.to_dense"
    ):
        av.gram(graph, X)
    graph.links = graph.links.to_dense()
    assert av.gram(graph, X).shape == (12, 12)
    words, ids = (
        nn.Sequential(nn.Embedding(9, 3, max_norm=0.5), nn.Flatten(), nn.Linear(6, 2)),
        torch.arange(8).reshape(4, 2),
    )
    with pytest.raises(
        InvalidInput, match=r"writes to '0\.weight' in place; needs .*model\.get_submodule\('0'\)\.max_norm = None"
    ):
        av.gram(words, ids)
    words(ids)
    words.get_submodule("0").max_norm = None
    assert av.gram(words, ids).shape == (8, 8)
    with pytest.raises(InvalidInput, match="no trainable parameter; needs the model before it was quantized"):
        av.gram(torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}), X)


@pytest.mark.parametrize("train", [True, False])
def test_eval_mode_is_a_remedy_where_it_helps(train):
    def noisy(z):
        return torch.nn.functional.dropout(torch.tanh(z), 0.5, model.training if train else True)

    def centred(z):
        return torch.tanh(z - z.mean(0) if not train or model.training else z)

    for between, words in ((noisy, "differ between two evaluations"), (centred, "depends on the others in its batch")):
        model = Net(between)
        with pytest.raises(InvalidInput, match=words) as caught:
            av.gram(model, X)
        assert caught.value.need.endswith("model.eval()") == train
        model.eval()
        if train:
            assert av.gram(model, X).shape == (12, 12)


def test_a_temperature_with_a_domain():
    """f is minus t df/dt too: the last layer below the root's own parameter is tried by itself."""

    def between(z):
        if float(model.t) <= 0.0:
            raise ValueError("a temperature that is not positive")
        return torch.tanh(z) / model.t

    model = Net(between, t=nn.Parameter(torch.tensor(0.07)))
    result = av.check_common_structure(model, X)
    assert (result.verdict, result.measured["S"]) == ("HOLDS", ("h.weight", "h.bias"))


def test_a_part_in_a_narrower_dtype():
    for entry in (av.jacobian, av.gram):
        assert entry(Autocast(), X, dtype="same").dtype == torch.float32
    assert av.check_alignment(Autocast(), X, Y, loss="ce", dtype="same").measured["computed_in"] == "bfloat16"


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_the_remedy_of_a_norm_that_writes(norm):
    model = chain(norm(nn.Linear(3, 8)))
    with pytest.raises(InvalidInput, match=r"whose forward writes to .* in place; needs .*model\.eval\(\)"):
        av.jacobian(model, X)
    assert av.jacobian(model.eval(), X).shape[0] == 12


def test_a_domain_is_kept_at_drawn_parameters():
    result = av.check_common_structure(Positive(False), X, S=("h",))
    assert (result.verdict, result.measured["skipped"]) == ("HOLDS", 0)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_names_with_the_prefix_of_a_wrapper(prefix):
    model = chain(nn.Linear(3, 8))
    state = {prefix + name: value for name, value in model.state_dict().items()}
    assert torch.equal(av.gram(model, X, state=state), av.gram(model, X))
    S = (f"{prefix}2.weight", f"{prefix}2.bias")
    assert av.check_common_structure(model, X, S=S).measured["S"] == ("2.weight", "2.bias")
    with pytest.raises(InvalidInput, match="which the model does not have"):
        av.gram(model, X, state={"other." + name: value for name, value in state.items()})
