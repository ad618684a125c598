"""Models and inputs that no check can be about: refused by name, with the remedy, and left as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from alignver.checks.alignment import check_alignment
from alignver.errors import InvalidInput
from alignver.jacobians.jacobian import jacobian, outputs
from alignver.network.functional import functional
from alignver.network.validate_model import probe
from alignver.progress import Silent, listening
from tests.reference import fingerprint


def check(model, X):
    return check_alignment(model, X, np.zeros((4, 3 if isinstance(model, Root) else 2)), loss="squared")


ENTRY_POINTS = [jacobian, outputs, check]


class Wrap(nn.Module):
    """A linear layer with a given function after it."""

    def __init__(self, after, inside: int = 3, outside: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(inside, outside)
        self.after = after

    def forward(self, x: torch.Tensor) -> object:
        return self.after(self.layer(x))


class WritesParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.a.add_(1.0)
        return x * self.a


class WritesBuffer(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.a = nn.Parameter(torch.ones(3))
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.in_place:
            self.count.add_(1.0)
        else:
            self.count = self.count + 1.0
        return x * self.a


class Hidden(nn.Module):
    """Reads its weight through a closure made at construction, not from the module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        weight = self.layer.weight
        self.after = lambda x: x @ weight.to(x.dtype).T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.after(x)


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        doubled = 2.0 * self.layer.weight
        self.run = lambda x: x @ doubled.T + self.layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x.double())


class NoGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.layer(x)


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sqrt(self.scale)


def _nan_parameter() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        model[0].bias[1] = float("nan")
    return model


def _nan_buffer() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    model[1].running_var[0] = float("inf")
    return model


def _mixed_devices() -> nn.Module:
    # The meta device stands for a second one: refused first, for having no values.
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, device="meta"))


def _frozen() -> nn.Module:
    return nn.Linear(3, 2).requires_grad_(False)


MODELS = {
    "no module": (lambda: lambda x: x, r"model: got a function; needs a torch.nn.Module"),
    "a class": (lambda: nn.Linear, r"model: got a type"),
    "None": (lambda: None, r"model: got None"),
    "batch norm in train mode": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
        r"BatchNorm1d '1' in train mode.*model\.eval\(\)",
    ),
    "batch norm without statistics": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval(),
        r"BatchNorm1d '1' without running statistics",
    ),
    "instance norm in train mode": (
        lambda: nn.Sequential(nn.InstanceNorm1d(2, affine=True, track_running_stats=True)),
        r"InstanceNorm1d '0' in train mode.*model\.eval\(\)",
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)), r"Dropout '1' in train mode.*model\.eval\(\)"),
    "rrelu": (lambda: nn.Sequential(nn.Linear(3, 2), nn.RReLU()), r"RReLU '1' in train mode"),
    "recurrent dropout": (lambda: nn.LSTM(3, 2, num_layers=2, dropout=0.5), r"LSTM in train mode"),
    "functional dropout": (
        lambda: Wrap(lambda x: nn.functional.dropout(x, 0.5)),
        r"Wrap, whose outputs differ between two evaluations.*deterministic",
    ),
    "noise": (lambda: Wrap(lambda x: x + torch.randn_like(x)), r"Wrap, whose outputs differ between two evaluations"),
    "no parameter": (lambda: nn.ReLU(), r"ReLU with no trainable parameter; needs at least one$"),
    "meta": (lambda: nn.Linear(3, 2, device="meta"), r"parameter 'weight' on the meta device.*load its weights"),
    "partly meta": (_mixed_devices, r"parameter '1.weight' on the meta device"),
    "lazy": (lambda: nn.LazyLinear(2), r"parameter 'weight' without a shape yet.*model\(X\)"),
    "mixed dtypes": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double()),
        r"'0.weight' of float32 and parameter '1.weight' of float64.*model\.double\(\)",
    ),
    "complex": (
        lambda: nn.Linear(3, 2, dtype=torch.complex64),
        r"parameter 'weight' that is complex; needs its real and imaginary parts",
    ),
    "nan parameter": (_nan_parameter, r"parameter '0.bias' with NaN or Inf"),
    "inf buffer": (_nan_buffer, r"buffer '1.running_var' with NaN or Inf"),
    "a tuple": (lambda: Wrap(lambda x: (x, x)), r"Wrap, which returns a tuple; needs .*one tensor"),
    "a dict": (lambda: Wrap(lambda x: {"logits": x}), r"Wrap, which returns a dict"),
    "None out": (lambda: Wrap(lambda x: None), r"Wrap, which returns None"),
    "an array": (lambda: Wrap(lambda x: x.detach().numpy()), r"Wrap, which returns an ndarray"),
    "integers out": (lambda: Wrap(lambda x: x.argmax(1)), r"Wrap with outputs of int64"),
    "complex out": (lambda: Wrap(lambda x: x + 1j), r"Wrap with outputs of complex"),
    "three axes": (lambda: Wrap(lambda x: x.unsqueeze(2)), r"outputs of shape \(4, 2, 1\) for 4 samples.*flatten"),
    "a scalar": (lambda: Wrap(lambda x: x.sum()), r"outputs of shape \(\) for 4 samples"),
    "too few rows": (lambda: Wrap(lambda x: x[:2]), r"outputs of shape \(2, 2\) for 4 samples"),
    "nan out": (lambda: Wrap(lambda x: x / 0.0 - x / 0.0), r"Wrap with NaN or Inf outputs"),
    "coupled by the batch": (
        lambda: Wrap(lambda x: x - x.mean(0)),
        r"output for a sample depends on the others in its batch",
    ),
    "coupled by a softmax over samples": (lambda: Wrap(lambda x: x.softmax(0)), r"depends on the others"),
    "wrong inputs": (
        lambda: nn.Linear(5, 2),
        r"X: got samples of shape \(3,\); needs 5 numbers for each sample, the in_features of Linear",
    ),
    "no single samples": (
        lambda: Wrap(lambda x: x.reshape(4, 2)),
        r"on which Wrap raised RuntimeError.*accepts a single sample",
    ),
    "writes a parameter": (WritesParameter, r"WritesParameter, whose forward writes to 'a' in place"),
    "writes a buffer": (lambda: WritesBuffer(True), r"WritesBuffer, whose forward writes to 'count' in place"),
    "replaces a buffer": (lambda: WritesBuffer(False), r"WritesBuffer, whose forward writes to 'count'"),
}

DERIVATIVES = {
    "a frozen model": (_frozen, r"Linear with no trainable parameter.*include_frozen=True"),
    "a closure": (Hidden, r"Hidden, whose forward accesses 'layer.weight' other than through the module's attributes"),
    "a product made at construction": (Doubled, r"Doubled, whose forward accesses 'layer.weight' other than through"),
    "no gradient": (NoGradient, r"NoGradient, whose outputs have no gradient"),
    "an infinite derivative": (Root, r"derivative of output 0 by parameter 'scale' that is NaN or Inf, at sample 0"),
}


@pytest.mark.parametrize("entry", ENTRY_POINTS, ids=["jacobian", "outputs", "check_alignment"])
@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(name, entry):
    build, words = MODELS[name]
    model = build()
    x = torch.arange(12.0).reshape(4, 3) ** 2 + 1.0
    safe = isinstance(model, nn.Module) and not any(p.is_meta or nn.parameter.is_lazy(p) for p in model.parameters())
    before = fingerprint(model) if safe else None
    with pytest.raises(InvalidInput, match=words):
        entry(model, x)
    assert before is None or fingerprint(model) == before


@pytest.mark.parametrize("entry", ENTRY_POINTS[::2], ids=["jacobian", "check_alignment"])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_models_whose_derivatives_are_refused(name, entry):
    build, words = DERIVATIVES[name]
    model = build()
    before = fingerprint(model)
    with pytest.raises(InvalidInput, match=words):
        entry(model, torch.arange(12.0).reshape(4, 3) + 1.0)
    assert fingerprint(model) == before


@pytest.mark.parametrize("large", [False, True])
def test_a_model_is_probed_in_few_passes(large):
    """Batches of samples that a forward pass is run on, before its derivatives are used."""
    model, x, batches = Wrap(torch.tanh).double(), torch.randn(20, 3).double(), []
    if large:
        model.register_parameter("more", nn.Parameter(torch.zeros(10**6, dtype=torch.float64)))
    function = functional(model, torch.float64)
    function.model.after = lambda h: batches.append((len(h), h.requires_grad)) or torch.tanh(h)
    probe(function, x)
    ones, every = ([(1, True)] * 3, 3) if large else ([(1, True)] * 2 + [(1, False)] * 6 + [(2, True)], 8)
    assert sorted(batches) == sorted([(every, False)] * 2 + [(every, True), (every - 1, False), *ones])


def test_a_scripted_model_is_refused():
    class Scripted(torch.jit.ScriptModule):
        pass

    with pytest.raises(InvalidInput, match=r"ScriptModule|Scripted.*scripted or traced from"):
        jacobian(Scripted(), torch.ones(4, 3))


INPUTS = {
    "nan": (lambda: np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 3.0]]), r"X: got nan at \(1, 1\)"),
    "inf": (lambda: torch.tensor([[1.0, 2.0, -float("inf")]]), r"X: got -inf at \(0, 2\)"),
    "no samples": (lambda: np.ones((0, 3)), r"shape \(0, 3\)"),
    "no features": (lambda: torch.ones(4, 0), r"shape \(4, 0\)"),
    "0-d": (lambda: np.array(1.0), r"shape \(\)"),
    "a number": (lambda: 3.0, r"shape \(\)"),
    "ragged": (lambda: [[1.0, 2.0, 3.0], [1.0]], r"all of one length"),
    "complex": (lambda: np.ones((4, 3), dtype=complex), r"dtype complex128"),
    "object": (lambda: np.array([[None, 1, 2]], dtype=object), r"dtype object"),
    "strings": (lambda: np.array([["a", "b", "c"]]), r"dtype"),
    "text": (lambda: "X.npy", r"a str"),
    "None": (lambda: None, r"got None"),
    "a dict": (lambda: {"x": [1.0]}, r"argument 'x'; needs the arguments of its forward pass: input|X2: got a dict"),
    "longdouble": (lambda: np.ones((4, 3), dtype=np.longdouble), r"float64"),
    "masked": (lambda: np.ma.masked_array(np.ones((4, 3)), mask=np.eye(4, 3)), r"masked"),
    "scipy sparse": (lambda: sparse.csr_array(np.eye(3)), r"toarray"),
    "torch sparse": (lambda: torch.eye(3).to_sparse(), r"to_dense"),
    "meta": (lambda: torch.ones(4, 3, device="meta"), r"meta tensor"),
    "integers": (lambda: np.ones((4, 3), dtype=np.int64), r"dtype int64; needs floating-point numbers.*asarray"),
    "wrong shape": (lambda: np.ones((4, 3, 5)), r"gets 5 numbers; needs 3, its in_features"),
}


@pytest.mark.parametrize("entry", ENTRY_POINTS, ids=["jacobian", "outputs", "check_alignment"])
@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_are_refused(name, entry):
    build, words = INPUTS[name]
    X = build()
    if entry is ENTRY_POINTS[2]:
        rows = X.shape[0] if getattr(X, "ndim", 0) else 1

        def entry(model, X):
            return check_alignment(model, X, np.zeros((rows, 2)), loss="squared")

    with pytest.raises(InvalidInput, match=words):
        entry(nn.Linear(3, 2), X)


def convolutional(channels, side):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(4 * (side - 2) ** 2, 2))


TOKENS = np.random.default_rng(0).integers(0, 10, (5, 6))
IMAGES = np.random.default_rng(0).standard_normal((5, 8, 8, 3))
REMEDIED = {
    "channels last": (convolutional(3, 8), IMAGES, "X.transpose(0, 3, 1, 2)"),
    "no channel": (convolutional(1, 8), IMAGES[..., 0], "X[:, None]"),
    "float tokens": (nn.Sequential(nn.Embedding(10, 3), nn.Flatten()), TOKENS * 1.0, "X.astype('int64')"),
}


@pytest.mark.parametrize("name", REMEDIED)
def test_inputs_in_another_form_have_a_remedy_that_works(name):
    model, X, remedy = REMEDIED[name]
    with pytest.raises(InvalidInput) as refused:
        jacobian(model, X)
    assert remedy in refused.value.need
    assert "dtype=" not in refused.value.need  # which would not help
    jacobian(model, eval(remedy, {"X": X}))


@pytest.mark.parametrize(
    ("model", "X", "words"),
    [
        (
            nn.Sequential(nn.Embedding(9, 3), nn.Flatten()),
            TOKENS,
            "gets entries from 0 to 9; needs entries from 0 to 8",
        ),
        (convolutional(3, 8), IMAGES[..., :2].transpose(0, 3, 1, 2).copy(), "the second of which are 3 channels"),
        (convolutional(3, 9), IMAGES.transpose(0, 3, 1, 2).copy(), "Linear '2' gets 144 numbers; needs 196"),
    ],
)
def test_what_a_layer_gets_is_named(model, X, words):
    with pytest.raises(InvalidInput, match=words):
        jacobian(model, X)


def test_the_models_own_dtype_is_named_where_it_helps():
    class Single(nn.Linear):
        def forward(self, x):
            if x.dtype == torch.float64:
                raise RuntimeError("no kernel for float64")
            return super().forward(x)

    with pytest.raises(InvalidInput, match="dtype='same' to compute in its own float32"):
        jacobian(Single(3, 2), np.ones((4, 3)))


def test_inputs_of_another_dtype_are_refused_in_the_models_own():
    with pytest.raises(InvalidInput, match=r"X: got dtype float64 with a model that computes in float32"):
        jacobian(nn.Linear(3, 2), np.ones((4, 3)), dtype="same")


def test_dropout_and_batch_norm_in_eval_mode_are_fine():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 1)).eval()
    assert jacobian(model, torch.ones(4, 3)).shape == (4, 6 + 2 + 4 + 2 + 1)


def test_a_zero_dropout_in_train_mode_is_fine():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0))
    assert jacobian(model, torch.ones(4, 3)).shape == (8, 8)


def test_a_hook_that_masks_gradients_is_no_part_of_the_function():
    model = nn.Linear(3, 2)
    model.weight.register_hook(torch.zeros_like)
    assert torch.equal(jacobian(model, torch.ones(4, 3)), jacobian(_twin(model), torch.ones(4, 3)))


def _twin(model: nn.Linear) -> nn.Linear:
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    return twin


def test_the_comparisons_are_reported():
    """In a large model they take seconds, in which a terminal has to show something."""
    labels = []

    class Labels(Silent):
        def start(self, label, total):
            labels.append(label)

    with listening(Labels()):
        jacobian(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(3, 3))
    assert "comparing the model's passes on a few samples" in labels


def test_outputs_that_are_finite_in_the_models_own_dtype():
    """As of a mask by the least float32, whose sum with itself is infinite in one dtype only; the remedy works."""

    class Masked(Wrap):
        def forward(self, x):
            out = super().forward(x)
            return out if out.dtype == torch.float32 else out * torch.nan

    model, x = Masked(lambda out: out), torch.randn(4, 3)
    with pytest.raises(InvalidInput, match=r"NaN or Inf outputs; needs finite outputs in float64, or dtype='same'"):
        jacobian(model, x)
    assert jacobian(model, x, dtype="same").shape == (8, 8)
