"""Inputs, outputs, losses and labels as people have them: the answer is that of the same problem in plain arrays."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import types
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import alignver as av
from alignver.errors import InvalidInput
from alignver.jacobians.jacobian import jacobian, outputs
from alignver.jacobians.prepare import inputs_again
from alignver.network.adapt import built_by
from alignver.theory.losses import LOSSES, loss_name, modified_targets
from tests.reference import fingerprint

Fields = collections.namedtuple("Fields", "loss logits")


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


class Two(nn.Module):
    """Of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, left, right, scale=1.0, form=None):
        hidden = torch.tanh(self.a(left) + self.b(right) * scale)
        logits = self.h(hidden)
        forms = {None: logits, "dict": {"loss": None, "logits": logits, "hidden": hidden}, "tuple": (logits, hidden)}
        forms |= {"fields": Fields(None, logits), "dataclass": Output(logits, hidden), "many": logits.unsqueeze(1)}
        forms |= {"namespace": types.SimpleNamespace(loss=None, logits=logits)}
        return forms[form]


class Plain(nn.Module):
    """The same function of one array."""

    def __init__(self, two: Two) -> None:
        super().__init__()
        self.a, self.b, self.h = two.a, two.b, two.h

    def forward(self, x):
        return self.h(torch.tanh(self.a(x[:, :3]) + self.b(x[:, 3:])))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(30, 4), nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask=None, values=None):
        weights = attention_mask[..., None] if attention_mask is not None else 1.0
        pooled = (self.e(input_ids) * weights).sum(1)
        return {"logits": self.h(torch.tanh(pooled if values is None else pooled + values))}


class Items(Dataset):
    def __init__(self, items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, k):
        return self.items[k]


class Batch(Mapping):
    """A mapping that is no dict, as the batches of tokenizers are."""

    def __init__(self, **data) -> None:
        self.data = data

    def __getitem__(self, key):
        return self.data[key]

    def __iter__(self):
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


torch.manual_seed(0)
A, B, Y = torch.randn(6, 3), torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
IDS = torch.randint(0, 30, (6, 5))
MASK = (torch.arange(5) < torch.tensor([5, 3, 4, 5, 2, 1])[:, None]).long()

INPUTS = {
    "a tuple": lambda: ((A, B), Y),
    "a dict": lambda: ({"left": A, "right": B}, Y),
    "a dict in another order": lambda: ({"right": B.numpy(), "left": A.numpy()}, Y),
    "a mapping with labels": lambda: (Batch(left=A, right=B, labels=Y), None),
    "a data set of triples": lambda: (TensorDataset(A, B, Y), None),
    "a data set of pairs": lambda: (TensorDataset(A, B), Y),
    "a data set of nested pairs": lambda: (Items([((a, b), int(y)) for a, b, y in zip(A, B, Y)]), None),
    "a data set of dicts": lambda: (
        Items([{"left": a, "right": b, "label": int(y)} for a, b, y in zip(A, B, Y)]),
        None,
    ),
    "a loader": lambda: (DataLoader(TensorDataset(A, B, Y), batch_size=4), None),
    "a list of samples": lambda: ([(a, b, int(y)) for a, b, y in zip(A, B, Y)], None),
    "a list of dicts": lambda: ([{"left": a, "right": b} for a, b in zip(A.numpy(), B.numpy())], Y),
    "a list of batches": lambda: (DataLoader(Items([{"left": a, "right": b} for a, b in zip(A, B)]), batch_size=4), Y),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name):
    model = Two()
    before = fingerprint(model)
    X, targets = INPUTS[name]()
    expected = jacobian(Plain(model), torch.cat([A, B], 1))
    random = torch.get_rng_state()
    if name != "a data set of pairs":  # whose second part counts as the targets where there are no others
        assert torch.allclose(jacobian(model, X), expected)
        assert torch.allclose(av.gram(model, X), expected @ expected.T)
    result = av.check_alignment(model, X, targets, loss="cross_entropy")
    assert (result.verdict, result.subject) == ("HOLDS", "NETWORK")
    kappa = av.check_alignment(Plain(model), torch.cat([A, B], 1), Y, loss="cross_entropy").measured["kappa"]
    assert result.measured["kappa"]["upper"] == pytest.approx(kappa["upper"], rel=1e-9)
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_a_certificate_of_several_inputs_is_checked_again():
    model = Two()
    result = av.check_alignment(model, (A, B), Y, loss="ce")
    inputs, _, covered = inputs_again(result.certificate, model, (A, B), Y, loss="ce")
    assert covered
    assert av.recheck(result.certificate, **inputs).verdict == "HOLDS"


def test_token_ids_and_masks():
    model = Tokens().eval()
    result = av.check_alignment(model, {"input_ids": IDS, "attention_mask": MASK}, Y, loss="ce", select="logits")
    assert (result.verdict, result.subject) == ("HOLDS", "NETWORK")
    J = jacobian(model, {"input_ids": IDS, "attention_mask": MASK}, select="logits")
    moved = {"input_ids": torch.where(MASK == 1, IDS, 0), "attention_mask": MASK}
    assert torch.allclose(jacobian(model, moved, select="logits"), J)  # what is masked does not matter
    values = torch.randn(6, 4)  # integers beside floats
    J = jacobian(model, {"input_ids": IDS, "values": values}, select="logits", dtype="same")
    assert J.dtype == torch.float32
    assert J.shape == (12, 130)


@pytest.mark.parametrize(
    ("form", "select"),
    [("dict", "logits"), ("tuple", 0), ("tuple", -2), ("fields", "logits"), ("dataclass", "logits"),
     ("namespace", "logits"),     ("dict", lambda out: out["logits"]), ("many", lambda out: out.flatten(1))],
)  # fmt: skip
def test_outputs(form, select):
    model = Two()
    expected = jacobian(model, (A, B), forward_args={"scale": 2.0})
    options = {"select": select, "forward_args": {"form": form, "scale": torch.tensor(2.0)}}
    assert torch.equal(jacobian(model, (A, B), **options), expected)
    assert torch.equal(outputs(model, (A, B), **options), outputs(model, (A, B), forward_args={"scale": 2.0}))
    assert av.check_alignment(model, (A, B), Y, loss="ce", **options).verdict == "HOLDS"


def test_outputs_are_selected_before_any_work():
    model, X = Two(), (A, B)
    with pytest.raises(InvalidInput, match=r"select: got 'logit'.*a dict; needs one of 'logits', 'hidden'"):
        av.check_alignment(model, X, Y, loss="ce", select="logit", forward_args={"form": "dict"})
    with pytest.raises(InvalidInput, match=r"select: got 7, of a model that returns a tuple; needs one of 0, 1"):
        jacobian(model, X, select=7, forward_args={"form": "tuple"})
    with pytest.raises(InvalidInput, match=r"select: got a float"):
        jacobian(model, X, select=0.5)
    with pytest.raises(InvalidInput, match=r"select: got a bool"):
        jacobian(model, X, select=True)
    with pytest.raises(
        InvalidInput, match=r"select: got 'logits', of a model that returns one tensor; needs select=None"
    ):
        jacobian(model, X, select="logits")
    with pytest.raises(InvalidInput, match=r"select: got a function that raised KeyError: logit, of a dict"):
        jacobian(model, X, select=lambda out: out["logit"], forward_args={"form": "dict"})
    with pytest.raises(InvalidInput, match=r"select: got a function that returns a list; needs .* one tensor"):
        jacobian(model, X, select=lambda out: out.tolist())
    with pytest.raises(InvalidInput, match=r"forward_args: got a list"):
        jacobian(model, X, forward_args=[1])
    for entry in (jacobian, av.gram, av.JacobianOperator):
        with pytest.raises(InvalidInput, match=r"a dict; needs .*adapted\(model, X, Y, select='logits'\)"):
            entry(Tokens(), IDS)
    adapted, x, _ = av.adapted(Tokens(), IDS, None, select="logits")  # the remedy
    assert av.gram(adapted, x).shape == (12, 12)


REFUSED = {
    "rows": (lambda: (A, B[:5]), r"5 rows of the input 1, but 6 of 0; needs a row for each sample"),
    "a flag": (lambda: {"left": A, "right": B, "scale": 2.0}, r"'scale' that is a float.*forward_args=\{'scale'"),
    "not finite": (lambda: (A, B / 0.0), r"the input 1: (inf|-inf|nan)"),
    "text": (lambda: {"left": A, "right": ["a"] * 6}, r"the input 'right'.*real numbers"),
    "shuffled": (lambda: DataLoader(TensorDataset(A, B, Y), shuffle=True), r"shuffles.*shuffle=False"),
    "shuffled by itself": (lambda: Reshuffled(), r"in another order when read again: it shuffles"),
    "augmented": (lambda: Items.__new__(Augmented), r"other samples when read again.*without randomness"),
    "a generator": (lambda: ((a, b) for a, b in zip(A, B)), r"a generator, which can be read once"),
    "batches of other keys": (
        lambda: Listed([{"left": A, "right": B}, {"left": A}]), r"1 with the inputs 'left', but 'left', 'right'"),
    "batches of other shapes": (
        lambda: Items([(A[0], B[0], 1), (A[0, :2], B[0], 0)]), r"sample 1 of shape \(2,\).*samples of one shape"),
    "nothing": (lambda: Items([]), r"no samples; needs at least one"),
    "read once": (lambda: Once(), r"6 samples, then none when read again"),
    "other labels": (lambda: Relabelled(), r"^Y: got other targets when read again"),
    "a last batch dropped": (
        lambda: DataLoader(TensorDataset(A, B, Y), batch_size=4, drop_last=True), r"4 samples of a loader over 6"),
    "no batches": (lambda: DataLoader(TensorDataset(A, B, Y), batch_size=None), r"one target; needs batches"),
    "batches of pairs": (
        lambda: DataLoader(TensorDataset(A, B, Y), batch_size=3, collate_fn=list), r"batch 0 with a tuple.*collate_fn"),
    "an exception": (lambda: Broken([0]), r"samples that cannot be read \(division by zero\)"),
    "too many parts": (lambda: TensorDataset(A, B, A, A, A, Y), r"5 inputs in addition to.*takes 4; .*left, right"),
    "not finite in a data set": (lambda: TensorDataset(A, B / 0.0, Y), r"the input 1: (inf|-inf|nan)"),
    "no targets": (lambda: (A, B), r"^Y: got no targets; needs one target for each of the 6 samples: Y="),
}  # fmt: skip


class Reshuffled(IterableDataset):
    turn = 0

    def __iter__(self):
        self.turn += 1
        order = range(6) if self.turn % 2 else reversed(range(6))
        return iter([(A[k], B[k], int(Y[k])) for k in order])


class Augmented(Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, k):
        return A[k] + 0.1 * torch.randn(3), B[k], int(Y[k])


class Once(IterableDataset):
    def __init__(self) -> None:
        self.items = iter([(a, b, int(y)) for a, b, y in zip(A, B, Y)])

    def __iter__(self):
        return self.items


class Relabelled(Reshuffled):
    def __iter__(self):
        self.turn += 1
        return iter([(a, b, int(y) ^ self.turn % 2) for a, b, y in zip(A, B, Y)])


class Broken(Items):
    def __getitem__(self, k):
        return A[k] / 0 if k else 1 / 0


class Listed(Items):
    pass


@pytest.mark.parametrize("name", REFUSED)
def test_inputs_that_are_refused_before_any_work(name):
    build, words = REFUSED[name]
    ran = []
    model = Two()
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(InvalidInput, match=words):
        av.check_alignment(model, build(), None if "rows" not in name else Y, loss="ce")
    assert not ran


def test_two_sets_of_targets_are_refused():
    for X in (TensorDataset(A, Y), {"left": A, "right": B, "labels": Y}):
        kept = X if isinstance(X, dict) else DataLoader(X)
        with (
            pytest.raises(InvalidInput, match=r"Y: got targets in addition to those in X")
            if isinstance(X, dict)
            else (pytest.raises(InvalidInput))
        ):
            av.check_alignment(Two(), kept, Y, loss="ce")


LOSS = {
    "squared": ["squared", "mse", "MSELoss", nn.MSELoss(), nn.MSELoss, F.mse_loss],
    "binary_cross_entropy": ["bce", "BCEWithLogitsLoss", nn.BCEWithLogitsLoss(reduction="sum"),
                             F.binary_cross_entropy_with_logits],
    "cross_entropy": ["ce", "crossentropy", nn.CrossEntropyLoss(), nn.CrossEntropyLoss, F.cross_entropy],
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    assert {loss_name(loss) for loss in (name, *LOSS[name])} == {name}
    targets = Y if name == "cross_entropy" else F.one_hot(Y, 2)
    model = nn.Linear(3, 2)
    expected = av.check_alignment(model, A, targets, loss=name)
    for loss in LOSS[name]:
        assert av.check_alignment(model, A, targets, loss=loss).verdict == expected.verdict
        assert av.check_data(A, targets, loss=loss).measured["loss_lower"] == 0.0
    assert av.AlignmentTracker(model, A, targets, loss=LOSS[name][-1]).update() is not None


def mse_loss(outputs, y):
    return ((outputs - y) ** 4).mean()


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Has the name of torch's, and is another loss."""

    def forward(self, outputs, y):
        return super().forward(outputs, y) + outputs.norm()


@pytest.mark.parametrize("loss", [mse_loss, CrossEntropyLoss(), CrossEntropyLoss])
def test_a_loss_that_only_has_the_name_of_torchs_is_refused(loss):
    for check in (av.check_alignment, av.check_model, functools.partial(av.check_optimality, tolerance=1e3)):
        with pytest.raises(InvalidInput, match=r"loss: got .* needs one of 'squared'"):
            check(nn.Linear(3, 2), X=A, Y=Y, loss=loss)
    with pytest.raises(InvalidInput, match="loss: got "):
        av.check_data(A, Y, loss=loss)


@pytest.mark.parametrize(
    ("loss", "words"),
    [(nn.BCELoss(), "a loss of probabilities; needs torch.nn.BCEWithLogitsLoss"),
     (nn.NLLLoss(), "a loss of probabilities; needs torch.nn.CrossEntropyLoss"),
     (nn.CrossEntropyLoss(label_smoothing=0.1), "without label_smoothing"),
     (nn.CrossEntropyLoss(weight=torch.ones(2)), "without weight"),
     (nn.CrossEntropyLoss(ignore_index=0), "without ignore_index"),
     (nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), "without pos_weight"),
     ("hinge", "one of 'squared'"), (3, "one of 'squared'"), (nn.HingeEmbeddingLoss(), "one of 'squared'")],
)  # fmt: skip
def test_losses_that_are_refused(loss, words):
    with pytest.raises(InvalidInput, match=words):
        av.check_alignment(nn.Linear(3, 2), A, Y, loss=loss)


def test_labels():
    integers = modified_targets(Y, "cross_entropy", 6, 2)
    lists = [[y] for y in Y.tolist()], Y.numpy().astype(float).tolist()
    for labels in (Y.float(), Y[:, None], Y.double()[:, None], Y.bool(), Y.numpy().astype("uint8"), *lists):
        assert np.array_equal(modified_targets(labels, "cross_entropy", 6, 2), integers)
        result = av.check_alignment(nn.Linear(3, 2), A, labels, loss="ce")
        assert result.measured["n"] == 6
    with pytest.raises(InvalidInput, match="integer labels"):
        modified_targets(Y.float() + 0.5, "cross_entropy", 6, 2)
    with pytest.raises(InvalidInput, match="integer labels"):
        modified_targets(Y.bool(), "cross_entropy", 6, 3)


LAST = {
    "softmax": (nn.Sequential(nn.Linear(3, 2), nn.Softmax(-1)), "cross_entropy", "softmax"),
    "sigmoid": (nn.Sequential(nn.Linear(3, 1), nn.Sigmoid(), nn.Flatten(0)), "bce", "sigmoid"),
    "a plain sigmoid": (nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1), nn.Sigmoid()), "bce", "sigmoid"),
}


class Ends(nn.Module):
    """A linear layer and a function of its output."""

    def __init__(self, outputs: int, last) -> None:
        super().__init__()
        self.h, self.last = nn.Linear(3, outputs), last

    def forward(self, x):
        return self.last(self.h(x))


BY_HAND = {
    "squeezed": (1, "bce", lambda z: torch.sigmoid(z).squeeze(-1)),
    "clamped": (1, "bce", lambda z: torch.sigmoid(z).clamp(1e-7, 1.0 - 1e-7)),
    "hard": (1, "bce", F.hardsigmoid),
    "clamped softmax": (2, "ce", lambda z: F.softmax(z, -1).clamp(min=1e-6)),
    "exponentials": (2, "ce", lambda z: z.exp() / z.exp().sum(1, keepdim=True)),
    "both classes": (2, "ce", lambda z: torch.stack([z[:, 0].sigmoid(), 1.0 - z[:, 0].sigmoid()], 1)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_last_nonlinearity_by_hand_is_no_logit(name):
    outputs, loss, last = BY_HAND[name]
    with pytest.raises(InvalidInput, match=r"outputs are those of a (softmax|sigmoid|hard sigmoid), which"):
        av.check_alignment(Ends(outputs, last), A, Y, loss=loss)
    for rest in (lambda z: z, F.relu, lambda z: z.clamp(0.0, 1.0)):
        assert av.check_alignment(Ends(outputs, rest), A, Y, loss=loss).measured["n"] == 6


@pytest.mark.parametrize("name", LAST)
def test_a_last_nonlinearity_is_no_logit(name):
    model, loss, words = LAST[name]
    with pytest.raises(InvalidInput, match=rf"outputs are those of a {words}.*model\[:-1\]"):
        av.check_alignment(model, A, Y, loss=loss)
    end = -2 if name == "sigmoid" else -1  # the remedy
    assert av.check_alignment(model[:end], A, Y, loss=loss).measured["n"] == 6
    assert av.check_alignment(model, A, torch.rand(6, 2 if "softmax" in name else 1), loss="mse").measured["n"] == 6


def test_a_log_softmax_does_not_change_the_cross_entropy():
    model = nn.Sequential(nn.Linear(3, 2), nn.LogSoftmax(-1))
    assert av.check_alignment(model, A, Y, loss=nn.CrossEntropyLoss()).measured["n"] == 6


def test_the_softmax_of_one_output_is_refused():
    with pytest.raises(InvalidInput, match=r"'cross_entropy' of one output.*binary_cross_entropy"):
        av.check_alignment(nn.Linear(3, 1), A, Y, loss="ce")
    assert av.check_alignment(nn.Linear(3, 1), A, Y, loss="binary_cross_entropy").measured["m_y"] == 1


@pytest.mark.parametrize("batch", [lambda x, y: (x, y), lambda x, y: {"x": x, "labels": y}], ids=["pair", "dict"])
def test_every_check_of_a_model_reads_a_loader(batch):
    class Net(nn.Sequential):
        def forward(self, x):
            return super().forward(x)

    torch.manual_seed(0)
    net, X, Y = Net(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)), torch.randn(6, 3), torch.arange(6) % 2
    rows = list(zip(X, Y))
    loader = DataLoader(rows, batch_size=2, collate_fn=lambda part: batch(*map(torch.stack, zip(*part))))
    width = av.check_safe_exploration(net, X=X, layer="1").measured["width"]
    assert av.check_safe_exploration(net, X=loader, layer="1").measured["width"] == width
    options = {"loss": "cross_entropy", "tolerance": 1e-3, "certify": False}
    loss = av.check_optimality(net, X=X, Y=Y, **options).measured["loss_as_run"]
    assert av.check_optimality(net, X=loader, **options).measured["loss_as_run"] == loss
    assert av.check_analytic(net, loader).verdict == "HOLDS"
    assert av.AlignmentTracker(net, loader, loss="cross_entropy").update().verdict("golub") == "HOLDS"


def test_a_loader_that_may_leave_samples_out_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter((torch.ones(2) * k, k) for k in range(5))

    with pytest.raises(InvalidInput, match=r"may leave samples out; needs all samples: drop_last=False"):
        av.adapted(nn.Linear(2, 1), DataLoader(Stream(), batch_size=2, drop_last=True))


def test_a_loader_of_pairs_of_tuples():
    class Two(nn.Linear):
        def forward(self, left, right):
            return super().forward(left - right)

    torch.manual_seed(0)
    samples = [((torch.randn(2), torch.randn(2)), k % 2) for k in range(5)]
    model, X, Y = av.adapted(Two(2, 2), DataLoader(samples, batch_size=2))  # whose batches are [[left, right], y]
    left, right = (torch.stack([sample[0][k] for sample in samples]) for k in range(2))
    assert torch.equal(model(X), nn.functional.linear(left - right, model.weight, model.bias))
    assert Y.tolist() == [0, 1, 0, 1, 0]


def test_a_builder_that_is_async_runs_inside_of_a_running_loop():
    async def build():
        await asyncio.sleep(0)
        return nn.Linear(2, 1)

    async def notebook():
        return built_by(build)

    assert isinstance(asyncio.run(notebook()), nn.Linear)
    assert isinstance(built_by(build), nn.Linear)
