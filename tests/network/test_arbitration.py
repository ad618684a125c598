"""Torch's passes disagree about derivatives: the right one is used, and named, or the model is refused by name."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from alignver import check_analytic, check_model, check_optimality, check_safe_exploration
from alignver.checks.alignment import check_alignment
from alignver.errors import InvalidInput
from alignver.jacobians.gram import gram
from alignver.jacobians.jacobian import jacobian, outputs
from alignver.jacobians.jacobian_form import streamed_qr
from alignver.jacobians.operator import JacobianOperator
from alignver.results import Rigor
from tests.reference import fingerprint

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 0, 1, 1, 0])
IDS = torch.tensor([[1, 1, 3, 4], [2, 2, 2, 0], [5, 6, 7, 8], [0, 0, 1, 1], [3, 3, 3, 3], [8, 1, 2, 3]])


class Of(nn.Module):
    """Modules by name, and a forward pass of them."""

    def __init__(self, forward, **modules) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward
        self.eval()

    def forward(self, x):
        return self.run(self, x)


def differences(model: nn.Module, x: torch.Tensor, h: float = 1e-6) -> torch.Tensor:
    """Return J column by column, from the outputs of a copy in float64 that runs with gradients."""
    twin = copy.deepcopy(model).double()
    x = x.double() if x.is_floating_point() else x
    columns = []
    for parameter in twin.parameters():
        flat = parameter.data.view(-1)
        for k in range(len(flat)):
            ends = []
            for sign in (h, -h):
                before = flat[k].clone()
                flat[k] += sign
                ends.append(twin(x).detach().double().reshape(len(x), -1).T.reshape(-1))
                flat[k] = before
            columns.append((ends[0] - ends[1]) / (2 * h))
    return torch.stack(columns, 1)


def patches(norm: nn.Module) -> nn.Module:
    def run(s, x):
        z = s.b(s.c(x)).flatten(2).transpose(1, 2)
        return s.h(torch.tanh(z).mean(1))

    return Of(run, c=nn.Conv2d(3, 4, 3, 2, 1, bias=False), b=norm, h=nn.Linear(4, 2))


def clipped(s, x):
    h = torch.tanh(s.a(x))
    if h.requires_grad:
        h.register_hook(lambda g: g.clamp(-0.1, 0.1))
    return s.h(h)


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net[1].register_full_backward_hook(lambda module, grads, _: (grads[0] * 0.5,))
    return net


def lookup(**options) -> nn.Module:
    return Of(lambda s, x: s.h(torch.tanh(s.e(x).sum(1))), e=nn.Embedding(10, 3, **options), h=nn.Linear(3, 2))


def bag(**options) -> nn.Module:
    return Of(lambda s, x: s.h(torch.tanh(s.e(x))), e=nn.EmbeddingBag(10, 3, mode="sum", **options), h=nn.Linear(3, 2))


def attended(s, x):
    z = s.e(x.unflatten(1, (3, 1)))
    return s.h(F.scaled_dot_product_attention(s.q(z), s.k(z), s.v(z)).mean(1))


def attention() -> nn.Module:
    return Of(attended, e=nn.Linear(1, 4), **{name: nn.Linear(4, 4) for name in "qkv"}, h=nn.Linear(4, 2))


def padded() -> nn.Module:
    def run(s, x):
        z = x.unflatten(1, (4, 4))
        return s.h(s.r(z, src_key_padding_mask=z.abs().sum(-1) == 0).mean(1))

    layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
    return Of(run, r=nn.TransformerEncoder(layer, 1, enable_nested_tensor=True), h=nn.Linear(4, 2))


def switching(s, x):
    return s.h(torch.tanh(s.a(x)) * (1.0 if torch.is_grad_enabled() else 2.0))


def padded_inputs() -> torch.Tensor:
    x = torch.randn(5, 4, 4)
    for i, length in enumerate((3, 2, 4, 1, 3)):
        x[i, length:] = 0.0
    return x.flatten(1)


def parts() -> dict[str, nn.Module]:
    return {"a": nn.Linear(3, 4), "h": nn.Linear(4, 2)}


RIGHT = {
    "a batch of one": (lambda: patches(nn.BatchNorm2d(4)), torch.randn(3, 3, 4, 4)),
    "no such batch": (lambda: patches(nn.GroupNorm(2, 4)), torch.randn(3, 3, 4, 4)),
    "a clipping hook": (lambda: Of(clipped, **parts()), X),
    "a hook on a module": (hooked, X),
    "scaled by frequency": (lambda: lookup(scale_grad_by_freq=True), IDS),
    "a bag, scaled": (lambda: bag(scale_grad_by_freq=True), IDS),
    "sparse gradients": (lambda: lookup(sparse=True), IDS),
    "a sparse bag": (lambda: bag(sparse=True), IDS),
    "zero gradients of the keys": (attention, X),
    "padding": (padded, padded_inputs()),
    "another function under no_grad": (lambda: Of(switching, **parts()), X),
    "logits in float32": (lambda: Of(lambda s, x: s.h(torch.tanh(s.a(x))).float(), **parts()), X),
}


@pytest.mark.parametrize("name", RIGHT)
def test_every_engine_gives_the_derivative_of_the_function(name):
    torch.manual_seed(0)
    build, x = RIGHT[name]
    model = build().eval()
    before = fingerprint(model)
    J = differences(model, x, h=1e-3 if "float32" in name else 1e-6)
    limit = 1e-3 if "float32" in name else 1e-6
    close = lambda A: float((A.double() - J).norm()) <= limit * float(J.norm())  # noqa: E731
    assert close(jacobian(model, x))
    assert float((gram(model, x) - J @ J.T).norm()) <= limit * float((J @ J.T).norm())
    R = streamed_qr(model, x).r
    assert float((R.T @ R - J @ J.T).norm()) <= limit * float((J @ J.T).norm())
    if "bag" not in name:  # torch has no second derivatives of it
        operator = JacobianOperator(model, x)
        assert close(torch.stack([operator.matvec(e) for e in torch.eye(J.shape[1], dtype=torch.float64)], 1))
        assert close(torch.stack([operator.rmatvec(e) for e in torch.eye(len(J), dtype=torch.float64)]))
    assert fingerprint(model) == before


def test_the_report_says_which_passes_were_used():
    model, x = patches(nn.BatchNorm2d(4)), torch.randn(4, 3, 4, 4)
    lines = str(check_alignment(model, x, Y[:4], loss="cross_entropy")).splitlines()
    assert "torch's backward pass is wrong for a batch of one sample" in lines[2]
    lines = str(check_alignment(padded(), padded_inputs(), Y[:5], loss="cross_entropy")).splitlines()
    assert "another function under torch.no_grad()" in lines[2]
    model = Of(switching, **parts())
    assert "another function under torch.no_grad()" in str(check_alignment(model, X, Y, loss="cross_entropy"))
    assert torch.allclose(outputs(model, X).float(), model(X), atol=1e-6)


def test_gradients_that_are_rounding_errors_do_not_cost_vmap():
    line = next(line for line in check_alignment(attention(), X, Y, loss="cross_entropy").evidence if line[:2] == "J:")
    assert "torch.func" in line


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 0.5 * g


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise ArithmeticError("no derivative")


def equilibrium(s, x):
    z = x.new_zeros(len(x), 4)
    for _ in range(200):
        following = torch.tanh(s.w(z) + s.a(x))
        if (following - z).abs().max() < 1e-2:
            break
        z = following
    return s.h(z)


def adaptive(s, x):
    """Integrate from 0 to 1 with a step that the largest error of the batch decides."""
    z, t, step = s.a(x), 0.0, 0.5
    while t < 1.0:
        step = min(step, 1.0 - t)
        slope = torch.tanh(s.w(z))
        error = (torch.tanh(s.w(z + step * slope)) - slope).abs().max().item() * step
        if error > 0.05 and step > 1e-3:
            step /= 2.0
            continue
        z, t = z + step * slope, t + step
    return s.h(z)


def implicit(function) -> nn.Module:
    net = Of(function, w=nn.Linear(4, 4), **parts())
    net.w.weight.data.mul_(1.5)
    return net


def in_one_dtype(s, x):
    h = s.a(x)
    return s.h(torch.tanh(h) if h.dtype == torch.float32 else torch.relu(h))


WRONG = {
    "straight-through": (lambda s, x: s.h(Sign.apply(s.a(x))), r"derivative of its outputs by 'a.*backward of Sign"),
    "a custom backward": (lambda s, x: s.h(torch.tanh(Half.apply(s.a(x)))), r"by 'a\.\w+'.*custom backward of Half"),
    "a backward that raises": (lambda s, x: s.h(Raises.apply(s.a(x))), r"backward pass raised ArithmeticError"),
    "reentrant checkpoints": (
        lambda s, x: s.h(checkpoint(s.a, x.requires_grad_(), use_reentrant=True)), r"needs .*use_reentrant=False"),
    "a feature of one dtype": (in_one_dtype, r"outputs in float64 are not those in float32.*dtype='same'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("entry", [jacobian, gram, JacobianOperator, streamed_qr], ids=lambda f: f.__name__)
def test_a_model_whose_passes_are_wrong_is_refused(name, entry):
    torch.manual_seed(0)
    run, words = WRONG[name]
    model = Of(run, **parts())
    before = fingerprint(model)
    with pytest.raises(InvalidInput, match=words):
        entry(model, X)
    assert fingerprint(model) == before


def test_lost_digits_are_no_other_function():
    """An interpolating network cancels terms of 1e7: its outputs in float32 have no correct digit."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)), torch.linspace(-1, 1, 12)[:, None]
    features, y = torch.tanh(net[0](x)).double().detach().numpy(), np.sign(np.sin(20 * x.numpy()))
    with torch.no_grad():
        net[2].weight.copy_(torch.from_numpy(np.linalg.lstsq(features, y, rcond=1e-16)[0].T))
        net[2].bias.zero_()
    exact = copy.deepcopy(net).double()(x.double())
    assert (net(x) - exact).abs().max() > 0.1 * exact.abs().max()
    assert gram(net, x).shape == (12, 12)


def test_a_constant_that_is_added_and_subtracted_is_no_other_function():
    net = Of(lambda s, x: s.h((s.a(x) + 2.0**24) - 2.0**24), **parts())
    assert (net(X) - net.double()(X.double())).abs().max() > 0.1
    assert check_alignment(net.float(), X, Y, loss="cross_entropy").subject == "NETWORK"


def test_underflow_is_no_other_function():
    net = Of(lambda s, x: s.h(torch.tanh(s.a(x)) * torch.sigmoid(torch.full_like(x[:, :1], -150.0))), **parts())
    net.h.bias.data.zero_()
    assert not net(X).any()
    assert net.double()(X.double()).any()
    assert gram(net.float(), X).any()


@pytest.mark.parametrize("function", [torch.relu, lambda z: F.leaky_relu(z, 0.3), torch.abs, F.hardtanh])
def test_a_choice_at_a_kink_is_no_wrong_backward_pass(function):
    """Differences see the mean of the one-sided derivatives; autograd takes one of them, or one between them."""
    torch.manual_seed(0)
    net = Of(lambda s, x: s.h(function(s.k(x) + (1.0 if function is F.hardtanh else 0.0)) + torch.tanh(s.a(x))),
             k=nn.Linear(3, 4), **parts())  # fmt: skip
    with torch.no_grad():
        net.k.weight.zero_()
        net.k.bias.zero_()
    assert jacobian(net, X).shape[0] == 2 * len(X)
    result = check_alignment(net, X, Y, loss="cross_entropy")
    assert any("exactly on it" in line for line in result.evidence)
    wrong = Of(lambda s, x: s.h(function(s.k(x) + 0.4) + torch.tanh(Half.apply(s.a(x)))), k=net.k, **parts())
    with pytest.raises(InvalidInput, match="custom backward of Half"):
        jacobian(wrong, X)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("run", [equilibrium, adaptive])
def test_a_step_that_the_batch_decides_couples_samples(run, seed):
    """Where each sample alone takes as many steps as the batch, the derivatives are those of the function."""
    torch.manual_seed(seed)
    model, x = implicit(run), torch.randn(8, 3)
    alone = torch.cat([model(part) for part in x.split(1)])
    if not torch.allclose(alone, model(x), atol=1e-5):
        with pytest.raises(InvalidInput, match=r"depends on the others in its batch.*a fixed number of steps"):
            gram(model, x)
        return
    M, J = gram(model, x), jacobian(model, x)
    assert float((M - J @ J.T).norm()) <= 1e-9 * float(M.norm())


def test_remedies_of_models_that_are_refused():
    model = Of(in_one_dtype, **parts())
    assert jacobian(model, X, dtype="same").dtype == torch.float32
    model = Of(lambda s, x: s.h(checkpoint(s.a, x, use_reentrant=False)), **parts())
    assert jacobian(model, X, dtype="same").shape == (12, 26)


def test_the_graph_decides_where_autograd_is_wrong():
    def run(s, x):
        h = torch.tanh(s.a(x))
        return s.h(h + h.detach())

    model = Of(run, a=nn.Linear(3, 8), h=nn.Linear(8, 2))
    with pytest.raises(InvalidInput, match="whose backward pass is not the derivative of its outputs by 'a"):
        jacobian(model, X)
    result = check_alignment(model, X, Y, loss="cross_entropy")
    assert (result.verdict, result.rigor, result.subject) == ("HOLDS", "PROOF", "NETWORK")
    assert "not computed: Of, whose backward pass" in str(result)


def test_a_model_is_checked_while_another_thread_trains_it():
    """Its training takes the steps that it takes alone, and two checks of one model do not disturb each other."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 2))

    def train(net: nn.Module) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(net(X), Y).backward()
            optimizer.step()

    alone, watched, failures, done = build(), build(), [], threading.Event()
    train(alone)

    def check() -> None:
        while not done.is_set():
            try:
                jacobian(watched, X)
            except Exception as error:
                failures.append(error)

    checks = [threading.Thread(target=check) for _ in range(2)]
    for thread in checks:
        thread.start()
    train(watched)
    done.set()
    for thread in checks:
        thread.join()
    assert not failures
    assert all(torch.equal(p, q) for p, q in zip(alone.parameters(), watched.parameters()))


@pytest.mark.parametrize(
    "check",
    [
        lambda net: check_alignment(net, X, Y, loss="cross_entropy"),
        lambda net: check_model(net, X, Y, loss="cross_entropy"),
        lambda net: check_safe_exploration(net, X=X, layer="1", certify=False),
        lambda net: check_optimality(net, X=X, Y=Y, loss="cross_entropy", tolerance=1e-3, certify=False),
        lambda net: check_analytic(net, X),
    ],
    ids=["alignment", "model", "exploration", "optimality", "analytic"],
)
def test_checks_take_nothing_back_that_another_thread_writes(check):
    """Nor its modes: the other thread evaluates between its steps."""
    torch.manual_seed(0)
    watched, steps, done, wrong = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)), 0, threading.Event(), []

    def count() -> None:
        nonlocal steps
        while not done.is_set():
            with torch.no_grad():
                watched[0].bias.add_(1.0)
            watched.train(not watched.training)
            mode = watched.training
            steps += 1
            watched(X)
            if watched.training != mode or not torch.equal(watched[0].bias, first + steps):
                wrong.append(steps)
                return

    with torch.no_grad():
        watched[0].bias.round_()
    first = watched[0].bias.detach().clone()
    thread = threading.Thread(target=count)
    thread.start()
    try:
        result = check(watched)
    finally:
        done.set()
        thread.join()
    assert steps
    assert not wrong
    if getattr(result, "name", "") == "alignment":
        assert "the model was trained meanwhile" in result.evidence[0]


class Claimed(torch.autograd.Function):
    """Returns a gradient for numbers that the outputs do not depend on."""

    share = 0.0

    @staticmethod
    def forward(ctx, out, numbers, x):
        ctx.save_for_backward(x)
        ctx.size = numbers.numel()
        return out.clone()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        place = torch.round((x[:, 0] + 1) * (ctx.size - 1) / 2).long()
        hot = torch.nn.functional.one_hot(place, ctx.size).to(gradient.dtype)
        return gradient, Claimed.share * (gradient * hot).sum(0), None


class Claiming(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.inner, self.numbers = nn.Linear(1, 1), nn.Parameter(torch.randn(8) * scale)

    def forward(self, x):
        return Claimed.apply(self.inner(x) + 0 * torch.round(x), self.numbers, x)


def claimed(share, scale, monkeypatch):
    """J has rank 2; with the gradients that the model claims, however small, all 8 rows are independent."""
    monkeypatch.setattr(Claimed, "share", share)
    torch.manual_seed(0)
    X = np.linspace(-1.0, 1.0, 8)[:, None]
    return check_alignment(Claiming(scale).double(), X, np.sin(5 * X), loss="squared")


@pytest.mark.parametrize(("share", "scale"), [(1e-3, 1.0), (1e-5, 1.0), (1e-3, 1e-3), (1e-5, 0.0)])
def test_a_small_wrong_gradient_of_the_user_is_refused(share, scale, monkeypatch):
    with pytest.raises(InvalidInput, match=r"by 'numbers'.*the custom backward of Claimed"):
        claimed(share, scale, monkeypatch)


@pytest.mark.parametrize(("share", "scale"), [(1e-9, 1.0), (1e-9, 1e-3), (1e-3, 1e-6), (1e-9, 0.0)])
def test_nothing_is_proved_with_a_backward_pass_of_the_user(share, scale, monkeypatch):
    """Differences of the outputs do not see errors that small."""
    result = claimed(share, scale, monkeypatch)
    assert result.rigor is Rigor.NUMERICAL
    assert result.evidence[0].startswith("the backward pass of Claimed is the model's own")
