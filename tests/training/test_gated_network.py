"""The gated network made from networks of every kind: the output layers found, the replacement, the description."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alignver.errors import InvalidInput
from alignver.experiments.networks import resnet18
from alignver.network.output_layers import find_output_layers
from alignver.training.gated_network import modify
from alignver.training.wrapper import EEWrapper
from tests.training import nets

X3 = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def by_hand(model, x, first, last, slope, before):
    """Equation (18) as a loop, with the weights that the model has; ``before`` returns z without its constant."""
    z = torch.cat([before(x), torch.ones(len(x), 1)], 1)
    W = torch.cat([first.weight, first.bias[:, None]], 1)
    rows = []
    for j in range(last.out_features):
        for i in range(len(x)):
            total = torch.zeros(())
            for k in range(len(W)):
                q = W[k] @ z[i]
                total = total + last.weight[j, k] * torch.sigmoid(slope * q) * q
            rows.append(total)
    return torch.stack(rows).reshape(last.out_features, len(x)).T


def found(model, x=X3):
    return [call.name for call in find_output_layers(model, x).layers]


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (nets.Attributes, ["middle", "head"]),
        (nets.Nested, ["rest.1.0", "rest.2"]),
        (nets.InList, ["layers.1", "layers.2"]),
        (nets.Token, ["b", "c"]),
        (nets.Tied, ["b", "c"]),
        (nets.TwoNames, ["all.2", "fc"]),
        (nets.Twice, []),
        (nets.Skip, ["c"]),
        (lambda: nn.Linear(3, 2), [""]),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), ["0", "1"]),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), ["2"]),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2)), ["2"]),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 2)), ["2"]),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.ReLU(inplace=True), nn.Linear(4, 2)), ["0", "3"]),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(inplace=True)), []),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(1)), []),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)), ["0", "2"]),
        (lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2)), []),
    ],
)
def test_the_layers_that_a_model_ends_in(build, names):
    torch.manual_seed(0)
    assert found(build()) == names


def test_a_relu_that_changes_nothing_on_the_samples_is_still_there():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU())
    with torch.no_grad():
        model[2].bias.fill_(100.0)
    assert torch.equal(model(X3), model[:3](X3))
    assert found(model) == []


@pytest.mark.parametrize("slope", [1.0, 30.0])
@pytest.mark.parametrize("m_y", [1, 3])
def test_equations_16_and_18(m_y, slope):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, m_y))
    network = modify(model, X3, outputs=m_y, slope=slope)
    expected = by_hand(model, X3, model[2], model[4], slope, model[:2])
    assert torch.allclose(network(X3), expected, atol=1e-6)
    assert network.head.hidden.shape == (m_y, 6, 6)
    # The hidden layers start equal and are trained apart.
    network(X3)[:, 0].sum().backward()
    assert bool((network.head.hidden.grad[0] != 0.0).any())
    assert not bool((network.head.hidden.grad[1:] != 0.0).any())


def test_equation_17_a_steep_gate_is_relu():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2, bias=False))
    assert torch.allclose(modify(model, X3, outputs=2, slope=1e6)(X3), model(X3), atol=1e-5)


def test_the_constant_neuron_carries_the_bias():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 1))
    head = modify(model, X3, outputs=1).head
    assert bool((head.features(X3)[:, -1] == 1.0).all())
    assert bool((head.hidden[:, :, -1] == 0.0).all())  # no bias there
    biased = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    assert torch.equal(modify(biased, X3, outputs=1).head.hidden[0, :, -1], biased[0].bias)


def test_what_was_changed_is_said():
    model = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Dropout(), nn.Linear(4, 2))
    words = modify(model, X3, outputs=2, slope=7.0).changes
    assert "0 and 3 became gated units, 4 for each of 2 outputs, with the same weights" in words[0]
    assert "gates of slope 7 replace Softplus and Dropout between them" in words[0]
    assert words[1:] == (
        "the bias of 3 was dropped: equation (16) has none",
        "40 parameters, 14 more than before",  # 2 (4 x 4) + 2 x 4 in place of 16 + 10
    )
    assert modify(nets.Tied(), X3, outputs=4).changes[-2].startswith("c shared its weights with another layer")


class Between(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.drop, self.function = nn.Linear(3, 5), nn.Linear(5, 2), nn.Dropout(), function

    def forward(self, x):
        return self.b(self.drop(self.function(self.a(x))))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (torch.relu, " replace relu and Dropout"),
        (lambda z: z.relu_(), " replace relu and Dropout"),
        (F.gelu, " replace gelu and Dropout"),
        (lambda z: torch.where(z > 0, z, 0.1 * z), " replace gt, mul, where and Dropout"),
        (lambda z: z.reshape(-1, 5).clone().detach(), " replace Dropout"),
        (nn.Sequential(nn.Tanh(), nn.Dropout()), " replace Tanh, Dropout and Dropout"),
    ],
)
def test_functions_that_are_replaced_are_named(function, words):
    torch.manual_seed(0)
    assert f"gates of slope 1{words} between them" in modify(Between(function), X3, outputs=2).changes[0]


@pytest.mark.parametrize(
    "norm",
    [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm,
     pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"))],
)  # fmt: skip
def test_layers_whose_weights_are_computed(norm):
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(3, 4)), nn.Tanh(), norm(nn.Linear(4, 2))).eval()
    model(X3)
    before = model(X3)
    network = modify(model, X3, outputs=2)
    weights = [layer.weight.detach() for layer in (model[0], model[2])]
    assert torch.equal(network.head.hidden[0, :, :-1], weights[0])
    assert torch.equal(network.head.output, weights[1])
    assert "the weights of 0 and 2 are no longer computed from others, as by weight_norm" in network.changes
    assert torch.equal(model(X3), before)


class Each(nn.Module):
    """A linear layer on each step of a sequence; the last one is the output."""

    def __init__(self):
        super().__init__()
        self.core, self.out = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        if not bool((x != 0).any()):
            raise ValueError("a sequence of zeros")
        return self.out(self.core(x)[0])[:, -1]


def test_two_logits_of_a_sequence():
    x, y = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
    wrapper = EEWrapper(Each(), loss="cross_entropy", tau=1, width=6, exploit_optimizer="newton")
    wrapper.fit((x, y), epochs=2, batch_size=2, exploit_batch_size="all")
    assert wrapper.module.head.output.shape == (2, 6)  # an output for each class, as the model has
    expected = "6 gated units for each of 2 outputs, of 2 features; out runs on 5 vectors for each sample"
    assert wrapper.module.changes[0].endswith(expected)


class Sure(nn.Sequential):
    """A model that refuses zeros."""

    def forward(self, x):
        if not bool((x != 0).any()):
            raise ValueError("zeros")
        return super().forward(x)


def test_no_inputs_are_invented():
    assert found(Sure(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))) == ["0", "2"]


def test_resnet_18_gets_a_hidden_layer_before_its_last():
    model = resnet18(1, 10, seed=0)
    x = torch.randn(2, 1, 16, 16)
    network = modify(model, x, outputs=10, width=5)
    assert network.changes[0] == "head was replaced by 5 gated units for each of 10 outputs and a last layer"
    assert network.features(x).shape == (2, 512)
    assert network(x).shape == (2, 10)
    with pytest.raises(InvalidInput, match="width: got no width for a model that ends in one fully connected layer"):
        modify(model, x, outputs=10)


def test_a_network_without_fully_connected_layers_gets_two():
    model, x = nets.convolutional(), torch.randn(3, 1, 8, 8)
    network = modify(model, x, outputs=4, width=5)
    assert network(x).shape == (3, 4)
    assert network.head.hidden.shape == (4, 5, 3 * 2 * 2 + 1)
    assert torch.equal(network.features(x), model(x).flatten(1))
    assert "two fully connected layers added" in network.changes[0]


def test_layers_by_name():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2), nn.Softmax(1))
    assert found(model) == []
    network = modify(model, X3, outputs=2, layers=("2", "4"))
    assert torch.allclose(network(X3), by_hand(model, X3, model[2], model[4], 1.0, model[:2]), atol=1e-6)
    assert network.changes[-2] == "what follows 4 is left out"
    one = modify(model, X3, outputs=2, width=7, layers=("4",))
    assert one.head.hidden.shape == (2, 7, 6)
    skip = modify(nets.Skip(), X3, outputs=2, layers=("b", "c"))  # named explicitly: the skip is lost
    assert skip.head.hidden.shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (("1", "4"), "'1', which is not the name of a layer that runs"),
        (("nothing",), "'nothing', which is not the name of a layer that runs"),
        (("4", "2"), "run in the other order"),
        (("0", "2"), "'4' with parameters runs after"),
        (("0", "4"), "'2' with parameters runs after"),
        ((), "one or two names"),
        (("0", "2", "4"), "one or two names"),
        ("4", "one or two names"),
    ],
)
def test_names_that_will_not_do(layers, words):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    with pytest.raises(InvalidInput, match=words):
        modify(model, X3, outputs=2, layers=layers)


def test_refusals():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(InvalidInput, match="2 outputs of '2' for targets with 3"):
        modify(model, X3, outputs=3)
    with pytest.raises(InvalidInput, match="width=9 for 4 units of '0'"):
        modify(model, X3, outputs=2, width=9)
    with pytest.raises(InvalidInput, match="needs 3 numbers for each sample"):
        modify(model, torch.randn(4, 5), outputs=2)
    with pytest.raises(InvalidInput, match="a model without parameters"):
        modify(nn.Tanh(), X3, outputs=1)
    with pytest.raises(InvalidInput, match="reached by another way than its name"):
        modify(nets.Hidden(), X3, outputs=2)
    with pytest.raises(InvalidInput, match="a tuple"):
        modify(Pair(), X3, outputs=2)
    with pytest.raises(InvalidInput, match="width: got width=0"):
        modify(nets.Twice(), X3, outputs=2, width=0)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x):
        return self.a(x), x


def test_the_users_model_is_as_it_was():
    model = nets.noisy(2, torch.float32)
    model[1].eval()  # a BatchNorm that is held still
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    stored = list(model.modules())
    network = modify(model, X3, outputs=2)
    with torch.no_grad():
        network.head.hidden.add_(1.0)
        for p in network.parameters():
            p.mul_(0.5)
    assert [module.training for module in model.modules()] == modes
    assert all(a is b for a, b in zip(model.modules(), stored, strict=True))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    assert [m.training for m in network.body.modules()][2] is False  # its copy too


def test_a_copy_taps_its_own_body():
    network = modify(nets.noisy(2, torch.float32), X3, outputs=2)
    network.body[1].eval()
    twin = copy.deepcopy(network)
    assert twin._tap[0] is not network._tap[0]
    assert any(module is twin._tap[0] for module in twin.body.modules())
    assert [m.training for m in twin.modules()] == [m.training for m in network.modules()]
    network.eval(), twin.eval()
    assert torch.equal(network(X3), twin(X3))
    with torch.no_grad():
        twin.head.hidden.zero_()
    assert bool((network.head.hidden != 0.0).any())


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_torch_compile_makes_one_graph_of_it_in_either_phase(compiler):
    network = modify(nets.plain(2, torch.float32), X3, outputs=2)
    for _ in range(2):
        torch._dynamo.reset()
        compiled = torch.compile(network, backend=compiler, fullgraph=True)
        assert torch.allclose(compiled(X3), network(X3), atol=1e-6)
        compiled(X3).sum().backward()
        network.head.freeze()
    torch._dynamo.reset()
