"""Algorithm 1: its phases, its pieces, and what each of them leaves alone."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.checks.optimality import check_optimality
from alignver.errors import InvalidInput
from alignver.progress import Silent, listening
from alignver.results import Rigor, Subject, Verdict
from alignver.training import checkpoint
from alignver.training.gated_network import modify
from alignver.training.loop import batches, smallest_batch
from alignver.training.wrapper import EEWrapper
from tests.training import nets


def wrapper(m_y=1, loss="binary_cross_entropy", model=None, **options):
    defaults = {"tau": 4, "epsilon": 0.1, "seed": 3, "exploit_optimizer": "momentum"}
    return EEWrapper(nets.plain(m_y) if model is None else model, loss=loss, **{**defaults, **options})


def weights(wrapper):
    return {name: p.detach().clone() for name, p in wrapper.module.named_parameters()}


def test_it_is_public():
    assert av.EEWrapper is EEWrapper


@pytest.mark.parametrize(("loss", "m_y"), [("squared", 2), ("binary_cross_entropy", 1), ("cross_entropy", 3)])
def test_the_pieces_are_the_whole(loss, m_y):
    X, Y = nets.data(loss, m_y=m_y)
    whole = wrapper(m_y, loss).fit((X, Y), 8)
    parts = wrapper(m_y, loss)
    losses = [parts.explore_step(X, Y) for _ in range(4)]
    assert parts.phase == "exploration"
    outcome = parts.enter_exploitation(X, Y)
    assert parts.phase == "exploitation"
    for _ in range(4):
        parts.exploit_step()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(parts).values(), strict=True))
    assert losses == [record["loss"] for record in whole.history[:4]]
    assert outcome.proved
    assert outcome.summary() == whole.guarantee.summary()
    assert [record["phase"] for record in whole.history] == ["exploration"] * 4 + ["exploitation"] * 4
    assert [record["steps"] for record in whole.history] == list(range(1, 9))
    last = whole.history[-1]
    assert last["loss"] == pytest.approx(loss_of(loss, whole.outputs(X), Y), rel=1e-10)
    assert math.isnan(last["error"]) == (loss == "squared")


def loss_of(loss, f, y):
    if loss == "squared":
        return float(((f - y) ** 2).sum(1).mean())
    if loss == "cross_entropy":
        return float(nn.functional.cross_entropy(f, y))
    return float(nn.functional.binary_cross_entropy_with_logits(f, y.double()))


def test_targets_that_are_read_only_are_taken():
    labels = np.array([0, 1, 1, 0])
    labels.setflags(write=False)  # as those of alignver.data are
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    wrapper = EEWrapper(model, loss="binary_cross_entropy", tau=1, exploit_optimizer="newton").fit(
        (X, labels), epochs=2
    )
    assert len(wrapper.history) == 2  # and torch warned of nothing


def test_exploration_is_the_users_optimiser_on_all_layers():
    X, Y = nets.data()
    trained = wrapper(optimizer=lambda p: torch.optim.Adam(p, lr=0.02))
    twin = modify(nets.plain(), X[:2], outputs=1).train()
    twin.load_state_dict(trained.prepare(X, Y).state_dict())
    adam = torch.optim.Adam(twin.parameters(), lr=0.02)
    for _ in range(3):
        trained.explore_step(X, Y)
        adam.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(twin(X), Y.double()).backward()
        adam.step()
    assert all(
        torch.allclose(a, b, rtol=1e-9) for a, b in zip(trained.module.parameters(), twin.parameters(), strict=True)
    )


def test_line_9_is_epsilon_times_a_normal_vector_and_line_10_freezes_the_gates():
    X, Y = nets.data()
    trained = wrapper(epsilon=0.25)
    trained.explore_step(X, Y)
    before, generator = weights(trained), torch.Generator()
    generator.set_state(trained.generator.get_state())
    outcome = trained.enter_exploitation(X, Y)
    for name, now in trained.module.named_parameters():
        delta = torch.randn(now.shape, generator=generator, dtype=torch.float64)
        assert torch.equal(now, before[name] + 0.25 * delta)
    head = trained.module.head
    assert bool(head.frozen)
    assert torch.equal(head.gates, head.hidden)  # R = theta^tau
    assert not any(outcome.replaced)
    assert not trained.module.training


def test_only_the_weights_of_the_last_hidden_layer_move_in_exploitation():
    X, Y = nets.data()
    trained = wrapper(model=nets.noisy())
    for _ in range(4):
        trained.explore_step(X, Y)
    trained.enter_exploitation(X, Y)
    before = copy.deepcopy(trained.module.state_dict())
    for _ in range(3):
        trained.exploit_step()
        trained.exploit_step(X, Y)  # BatchNorm's statistics stand still here too
    moved = {name for name, value in trained.module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head.hidden"}
    assert {n for n, p in trained.module.named_parameters() if p.requires_grad} == {"head.hidden"}


def test_frozen_parameters_are_not_part_of_theta():
    X, Y = nets.data()
    model = nets.plain()
    model[0].requires_grad_(False)
    trained = wrapper(model=model).fit((X, Y), 6)
    assert torch.equal(trained.module.body[0].weight, model[0].weight)


def test_the_users_model_is_left_alone_and_modes_are_kept():
    X, Y = nets.data()
    model = nets.noisy()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    trained = wrapper(model=model)
    trained.explore_step(X, Y)
    assert not trained.module.body[1].training  # a BatchNorm that the user holds still stays so
    assert trained.module.body[3].training
    trained.fit((X, Y), 6)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert not model[1].training
    assert all(p.grad is None for p in model.parameters())


def test_the_report_says_what_stands_still():
    X, Y = nets.data()
    trained = wrapper(model=nets.noisy(), exploit_optimizer=lambda p: torch.optim.SGD(p, lr=1e-4, weight_decay=0.01))
    trained.fit((X, Y), 6)
    words = " / ".join(trained.guarantee.sentences)
    assert "1 BatchNorm layer keeps its statistics from tau on (eval mode): z is a function of x alone" in words
    assert "dropout is off from tau on (1 layer)" in words
    assert "weight decay of 0.01" in words
    assert trained.guarantee.summary()["notes"] == list(trained.guarantee.notes)


def test_augmented_inputs_go_through_the_whole_network_each_time():
    X, Y = nets.data()
    calls = []

    def shifted(x, generator):
        calls.append(len(x))
        return x + 0.01 * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    trained = wrapper().fit((X, Y), 7, batch_size=16, augment=shifted)
    assert not trained.cached
    assert calls == [16, 14] * 7
    again = wrapper().fit((X, Y), 7, batch_size=16, augment=shifted)
    assert torch.equal(trained.module.head.hidden, again.module.head.hidden)
    other = wrapper().fit((X, Y), 7, batch_size=16)
    assert not torch.equal(trained.module.head.hidden, other.module.head.hidden)
    same = wrapper().fit((X, Y), 7, augment=lambda x, _generator: x)
    cached = wrapper().fit((X, Y), 7)
    assert torch.allclose(same.module.head.hidden, cached.module.head.hidden, rtol=1e-10, atol=1e-12)


def test_an_epochs_loss_is_the_mean_over_its_samples():
    X, Y = nets.data()
    trained = wrapper(optimizer=lambda p: torch.optim.SGD(p, lr=1e-300), tau=1)
    trained.fit((X, Y), 2, batch_size=7)  # 7, 7, 7, 7, 2
    start = wrapper(tau=1).prepare(X, Y)
    assert trained.history[0]["loss"] == pytest.approx(loss_of("binary_cross_entropy", start(X).detach(), Y), rel=1e-10)


def test_check_proves_the_gap_and_certifies_it():
    X, Y = nets.data()
    trained = wrapper(exploit_optimizer="newton").fit((X, Y), 25)
    result = trained.check(X, Y, tolerance=1e-3)
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert result.measured["training_errors"] == 0
    assert trained.history[-1]["loss"] == pytest.approx(
        result.measured["loss_lower"], rel=1e-4
    )  # torch's digits are few
    assert trained.check(X, Y.numpy(), tolerance=1e-9, certify=False).rigor is Rigor.NUMERICAL
    assert result.subject is Subject.NETWORK
    assert result.measured["loss_lower"] <= result.measured["loss_upper"] <= result.measured["gap_upper"]
    as_run = loss_of("binary_cross_entropy", trained.outputs(X).double(), Y)
    assert result.measured["loss_as_run"] == pytest.approx(as_run, rel=1e-9)
    assert result.measured["rank_n"] is True
    assert set(trained.certificate_inputs) == {"parameters", "x", "Y"}
    assert av.recheck(result.certificate, **trained.certificate_inputs).verdict is Verdict.HOLDS


def test_a_gap_of_the_network_is_not_that_of_the_stored_features():
    """In float32, features and products are rounded: the network has another loss than its features, and as it runs."""
    X, Y = nets.data(dtype=torch.float32)
    trained = wrapper(model=nets.plain(dtype=torch.float32), exploit_optimizer="newton").fit((X, Y), 25)
    result = trained.check(X, Y, tolerance=1.0)
    stored = check_optimality(
        trained.exploitation(X),
        trained.module.head.hidden.detach().numpy(),
        Y.numpy(),
        loss=trained.loss,
        tolerance=1.0,
    )
    assert stored.subject is Subject.COMPUTED_MATRIX
    wide = copy.deepcopy(trained.module).double()
    exact = loss_of("binary_cross_entropy", wide(X.double()).detach(), Y)
    assert result.measured["loss_lower"] == pytest.approx(exact, rel=1e-6, abs=0.0)
    assert stored.measured["loss_lower"] != pytest.approx(exact, rel=1e-9, abs=0.0)
    assert result.measured["stored_features"]["verdict"] == "HOLDS"


def test_a_loss_above_the_tolerance_is_refuted_for_the_network():
    X, Y = nets.data()
    trained = wrapper(exploit_optimizer="newton").fit((X, Y), 25)
    with torch.no_grad():
        trained.module.head.hidden.mul_(0.0)
    result = trained.check(X, Y, tolerance=0.1)
    assert (result.verdict, result.rigor, result.subject) == (Verdict.FAILS, Rigor.PROOF, Subject.NETWORK)
    assert result.code == "optimality-network-above"
    assert 0.1 < result.measured["gap_lower"] <= math.log(2.0)
    assert av.recheck(result.certificate, **trained.certificate_inputs).verdict is Verdict.HOLDS


def test_features_of_earlier_parameters_are_not_used():
    X, Y = nets.data()
    trained = wrapper(exploit_optimizer="newton").fit((X, Y), 25)
    assert trained.check(X, Y, tolerance=1e-3, certify=False).verdict is Verdict.HOLDS
    with torch.no_grad():
        for parameter in trained.module.body.parameters():
            parameter.mul_(1.5)
    result = trained.check(X, Y, tolerance=1e-3, certify=False)
    assert result.verdict is not Verdict.HOLDS
    assert result.measured["loss_lower"] == pytest.approx(trained.evaluate(X, Y)["loss"], rel=1e-6)


def test_what_is_not_enclosed_is_about_the_stored_features():
    X, Y = nets.data()
    trained = wrapper(exploit_optimizer="newton").fit((X, Y), 25)
    result = trained.check(X, Y, tolerance=1e-3, budget_seconds=0.0)
    assert (result.verdict, result.rigor, result.subject) == (Verdict.HOLDS, Rigor.PROOF, Subject.COMPUTED_MATRIX)
    assert "nothing is proved about the network: enclosures would take about" in result.evidence[0]
    assert trained.certificate_inputs == {}
    assert "theta" in result.certificate.inputs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dtypes(dtype):
    X, Y = nets.data(dtype=torch.float64)
    trained = wrapper(model=nets.plain(dtype=dtype), exploit_optimizer="newton").fit((X, Y), 20)
    assert trained.module.head.hidden.dtype == dtype
    assert trained.history[-1]["error"] == 0.0
    assert trained.outputs(X).dtype == dtype


def test_a_network_without_linear_layers_trains():
    torch.manual_seed(0)
    x = torch.randn(20, 1, 8, 8)
    y = torch.arange(20) % 3
    wrapper = EEWrapper(
        nets.convolutional(), loss="cross_entropy", tau=2, epsilon=0.1, width=8, exploit_optimizer="newton"
    ).fit((x, y), 30)
    assert wrapper.module.head.hidden.shape == (3, 8, 13)
    assert wrapper.history[-1]["error"] == 0.0
    batch = EEWrapper(nets.convolutional(), loss="cross_entropy", width=8, outputs=5)
    batch.explore_step(x[:1], y[:1])  # labels of one batch would not tell
    assert batch.module.head.hidden.shape[0] == 5


def test_a_check_is_about_the_inputs_that_it_is_given():
    """Cached features stand for the inputs that they were made of, and for no others."""
    X, Y = nets.data("binary_cross_entropy", m_y=1)
    trained = wrapper(exploit_optimizer="newton").fit((X, Y), 12)
    here = trained.check(X, Y, tolerance=0.5)
    there = trained.check(100.0 * X.flip(0), Y, tolerance=0.5)
    assert here.measured["loss_upper"] < there.measured["loss_lower"]
    loss = nn.functional.binary_cross_entropy_with_logits(trained.outputs(100.0 * X.flip(0)).double(), Y.double())
    assert there.measured["loss_lower"] <= float(loss) * (1 + 1e-5)
    for wrong in ("nonsense", X[:, :1], X[None]):
        with pytest.raises(InvalidInput, match=r"X|Y"):
            trained.check(wrong, Y)
    assert trained.check(X.clone(), Y, tolerance=0.5).measured == here.measured


def test_what_comes_before_the_first_step():
    trained = wrapper()
    for call in (lambda: trained.outputs(torch.zeros(1, 2)), lambda: checkpoint.state(trained)):
        with pytest.raises(InvalidInput, match="not modified yet"):
            call()
    assert repr(trained) == "EEWrapper(Sequential, loss='binary_cross_entropy': exploration, 0 epochs)"


def test_one_sample_that_is_left_alone_joins_the_batch_before_it():
    """BatchNorm has no statistics of one sample."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    X, Y = torch.randn(21, 2), torch.arange(21) % 2
    trained = wrapper(model=net).fit((X, Y), 6, batch_size=5)
    assert trained.steps == 6 * 4
    assert trained.guarantee.batch_size == 5
    assert [smallest_batch(21, size) for size in (5, 20, 4, 2, 1, 21)] == [5, 21, 4, 2, 1, 21]
    generator = torch.Generator().manual_seed(0)
    for n, size in ((21, 5), (21, 20), (6, 5), (7, 2), (3, 1)):
        drawn = list(batches(n, size, generator))
        assert sorted(torch.cat(drawn).tolist()) == list(range(n))
        assert min(map(len, drawn)) == smallest_batch(n, size)


def test_a_compiled_model_is_taken_for_what_it_compiles():
    X, Y = nets.data("binary_cross_entropy", m_y=1)
    plain, compiled = wrapper(), wrapper(model=torch.compile(nets.plain(1), backend="eager"))
    assert plain.explore_step(X, Y) == compiled.explore_step(X, Y)


def test_steps_are_taken_wherever_gradients_are_off():
    X, Y = nets.data("binary_cross_entropy", m_y=1)
    usual, off = wrapper().fit((X, Y), 6), wrapper()
    with torch.no_grad():
        off.fit((X, Y), 6)
    assert usual.history == off.history


def test_a_guarantee_is_shown_in_words():
    X, Y = nets.data("binary_cross_entropy", m_y=1)
    shown = repr(wrapper().fit((X, Y), 6).guarantee)
    assert shown.startswith("Guarantee(rank n = ")
    assert "array(" not in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau": math.nan}, "tau: got tau=nan"),
        ({"tau": 1.0}, "the float 1.0|tau=1.0; needs a share of the run below 1, or an integer"),
        ({"tau": True}, "tau: got"),
        ({"seed": "a"}, "seed: got seed='a'; needs a non-negative integer"),
        ({"seed": -1}, "seed: got seed=-1"),
        ({"optimizer": lambda parameters: None}, "a function that returns None"),
    ],
)
def test_arguments_that_mean_nothing(options, words):
    X, Y = nets.data("binary_cross_entropy", m_y=1)
    with pytest.raises(InvalidInput, match=words):
        wrapper(**options).fit((X, Y), 8)


def test_numpy_integers_count():
    X, Y = nets.data("binary_cross_entropy", m_y=1)
    trained = wrapper(tau=np.int64(4), seed=np.int32(3)).fit((X, Y), np.int64(8), batch_size=np.int16(9))
    assert trained.history == wrapper().fit((X, Y), 8, batch_size=9).history


def test_data_is_a_pair_or_a_dataset():
    X, Y = nets.data("binary_cross_entropy", m_y=1)
    dataset = torch.utils.data.TensorDataset(X, Y)
    of_pair = wrapper().fit((X, Y), 8, batch_size=9).history
    for data in (dataset, torch.utils.data.DataLoader(dataset, batch_size=4)):
        assert wrapper().fit(data, 8, batch_size=9).history == of_pair
    for data, words in (
        (torch.utils.data.DataLoader(dataset, shuffle=True), "data: got "),
        ((X, Y, Y), "data: got a tuple of 3"),
        (X, "data: got a Tensor"),
        ({"X": X, "Y": Y}, "data: got a dict"),
    ):
        with pytest.raises(InvalidInput, match=words):
            wrapper().fit(data, 8)
    with pytest.raises(InvalidInput, match=r"^Y: got targets in addition to those in X; needs one of the two"):
        av.check_alignment(nets.plain(1), dataset, Y, loss="binary_cross_entropy")


def test_parameters_that_are_nan_are_seen_before_any_step():
    X, Y = nets.data("binary_cross_entropy", m_y=1)
    model = nets.plain(1)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = math.nan
    trained = wrapper(model=model)
    with pytest.raises(InvalidInput, match=r"model: got parameter \S+ with NaN or Inf"):
        trained.fit((X, Y), 8)
    assert trained.steps == 0


def test_labels_of_any_form():
    """Whole floats, a column or names of classes train as integers do; names of other test classes are refused."""
    X, Y = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    names = ["abc"[k] for k in Y]

    def trained(labels, **options):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3))
        wrapper = EEWrapper(net, loss=nn.CrossEntropyLoss(), tau=1)
        return wrapper.fit((X, labels), epochs=2, **options).history[-1]

    expected = trained(Y, test=(X, Y))
    for labels in (Y.double(), Y[:, None], Y.numpy().astype("uint8"), Y.float()[:, None]):
        assert trained(labels)["loss"] == expected["loss"]
    assert trained(names, test=(X, names)) == expected
    with pytest.raises(InvalidInput, match=r"test: got classes that are not in the training samples"):
        trained(names, test=(X[:2], names[:2]))
    with pytest.raises(InvalidInput, match=r"Y: got NaN or Inf"):
        trained(Y / torch.tensor([0.0, 1.0, 1.0]).repeat(4))
    with pytest.raises(InvalidInput, match=r"Y: got labels from 0.5 to 2.5"):
        trained(Y + 0.5)


def test_the_epochs_are_reported():
    class Listener(Silent):
        steps = 0

        def start(self, label, total):
            return (label, total)

        def advance(self, handle):
            self.steps += handle == ("epochs", 5)

    listener = Listener()
    with listening(listener):
        wrapper().fit(nets.data("binary_cross_entropy"), 5)
    assert listener.steps == 5
