"""Requirements on arguments: what each accepts, what it refuses, and with which words and code."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

import alignver
from alignver import require
from alignver.checks.convergence import check_convergence
from alignver.checks.optimality import check_optimality
from alignver.data import image_sets, semeion
from alignver.errors import InvalidInput, kind_of
from alignver.features.rows import open_rows
from alignver.report.source import read


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_integers(value):
    accepted = require.integer("n", value, least=3, most=3)
    assert (accepted, type(accepted)) == (3, int)


@pytest.mark.parametrize("value", [True, np.True_, 3.0, "3", None, 2, 5, math.nan])
def test_no_integers(value):
    with pytest.raises(InvalidInput, match="an integer from 3 to 4") as caught:
        require.integer("n", value, least=3, most=4)
    assert (caught.value.argument, caught.value.code) == ("n", "not-an-integer")


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1.0), np.int64(1)])
def test_numbers(value):
    accepted = require.real("tol", value, above=0.0, most=1.0)
    assert (accepted, type(accepted)) == (1.0, float)


@pytest.mark.parametrize("value", [True, "1", None, 0.0, 1.5, math.nan, math.inf, -math.inf, 1j])
def test_no_numbers(value):
    with pytest.raises(InvalidInput, match=r"a number above 0\.0") as caught:
        require.real("tol", value, above=0.0, most=1.0)
    assert caught.value.code == "not-a-number"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"least": 0}, "a non-negative number"),
        ({"above": 0}, "a positive number"),
        ({}, "a finite number"),
        ({"least": 0.8, "below": 1.0}, "a number of at least 0.8, below 1.0"),
        ({"least": 0.0, "most": 1.0}, "a number from 0.0 to 1.0"),
    ],
)
def test_ranges_in_words(limits, words):
    with pytest.raises(InvalidInput) as caught:
        require.real("x", math.nan, **limits)
    assert caught.value.need == words


def test_choices_keep_their_type():
    assert require.one_of("rank", 1, (0, 1)) == 1
    with pytest.raises(InvalidInput, match="one of 0, 1"):
        require.one_of("rank", True, (0, 1))
    with pytest.raises(InvalidInput):
        require.one_of("loss", np.ones(2), ("squared",))


def test_booleans_and_types():
    assert require.boolean("repair", False) is False
    with pytest.raises(InvalidInput):
        require.boolean("repair", 0)
    assert require.instance("x", "text", str, "a text") == "text"
    with pytest.raises(InvalidInput, match="x: got an int"):
        require.instance("x", 1, str, "a text")


def test_the_code_survives_pickling():
    error = InvalidInput("x", "x=1", "2", code="wrong-type")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.code) == (str(error), "wrong-type")


@pytest.mark.parametrize("value", [True, False, np.True_, np.bool_(0)])
def test_a_boolean_of_numpy_is_one(value):
    assert require.boolean("certify", value) is bool(value)


@pytest.mark.parametrize("value", [1, 0, "yes", None, np.array([True])])
def test_what_only_counts_as_a_boolean_is_refused_everywhere(value):
    with pytest.raises(InvalidInput, match="certify"):
        alignver.check_membership(np.eye(2), np.ones(2), certify=value)
    with pytest.raises(InvalidInput, match="certify"):
        alignver.check_rank(np.eye(2), certify=value)
    with pytest.raises(InvalidInput, match="certify"):
        alignver.check_safe_exploration(np.eye(3), certify=value)


def _point():
    from alignver.theory.exploitation import Exploitation

    model = Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
    return model, np.ones((1, 3, 2)), [4.5, 1.5]


def _record():
    from alignver.theory.record import TrainingRecord

    return TrainingRecord([0, 1], [1.0, 0.5], [0.1, 0.1], 0, "gradient descent")


def _net():
    torch = pytest.importorskip("torch")
    return torch.nn.Linear(2, 1), np.eye(2), [0.0, 1.0]


def _wrapper(**options):
    net, _, _ = _net()
    return alignver.EEWrapper(net, loss="squared", **options)


def _tracker(**options):
    return alignver.AlignmentTracker(*_net(), loss="squared", **options)


BOOLEANS = {
    "delta_is_estimate": lambda **wrong: alignver.check_safe_exploration(np.eye(3), **wrong),
    "add_constant": lambda **wrong: alignver.check_safe_exploration(np.eye(3), **wrong),
    "add_constant of rows": lambda **wrong: open_rows(np.eye(3), **wrong),
    "certify of optimality": lambda **wrong: check_optimality(*_point(), loss="squared", tolerance=1.0, **wrong),
    "rank of optimality": lambda **wrong: check_optimality(*_point(), loss="squared", tolerance=1.0, **wrong),
    "rank_n": lambda **wrong: check_convergence(_record(), *_point(), loss="squared", **wrong),
    "train of mnist": lambda **wrong: image_sets.mnist(".", **wrong),
    "train of kmnist": lambda **wrong: image_sets.kmnist(".", **wrong),
    "train of svhn": lambda **wrong: image_sets.svhn(".", **wrong),
    "train of cifar10": lambda **wrong: image_sets.cifar10(".", **wrong),
    "train of cifar100": lambda **wrong: image_sets.cifar100(".", **wrong),
    "thorough": _tracker,
    "resume": _tracker,
    "record": _wrapper,
    "prove of fit": lambda **wrong: _wrapper().fit(_net()[1:], 2, **wrong),
    "flush_denormals": lambda **wrong: _wrapper().fit(_net()[1:], 2, **wrong),
    "cache": lambda **wrong: _wrapper().enter_exploitation(*_net()[1:], **wrong),
    "prove": lambda **wrong: _wrapper().enter_exploitation(*_net()[1:], **wrong),
    "include_frozen of jacobian": lambda **wrong: alignver.jacobian(*_net()[:2], **wrong),
    "include_frozen of gram": lambda **wrong: alignver.gram(*_net()[:2], **wrong),
}


@pytest.mark.parametrize("name", BOOLEANS)
@pytest.mark.parametrize("value", [1, "no", np.array([True])])
def test_every_boolean_is_one(name, value):
    argument = name.partition(" ")[0]
    with pytest.raises(InvalidInput, match=f"^{argument}: got {argument}=.*; needs True or False") as caught:
        BOOLEANS[name](**{argument: value})
    assert caught.value.code == "not-a-boolean"


@pytest.mark.parametrize(
    ("value", "words"), [(1, "an int"), ([], "a list"), (None, "None"), (np.ones(1), "an ndarray"), (1.5, "a float")]
)
def test_types_have_their_article(value, words):
    assert kind_of(value) == words


def test_certificates_of_another_type_or_place(tmp_path):
    for value in (None, 3, {}):
        with pytest.raises(InvalidInput, match=r"certificate: got (None|an int|a dict); needs a Certificate") as caught:
            alignver.recheck(value, A=np.eye(2))
        assert caught.value.code == "wrong-type"
    with pytest.raises(InvalidInput, match=r"without certificate\.json") as caught:
        alignver.load_certificate(tmp_path)
    assert caught.value.code == "unreadable-file"


def test_other_inputs_refute_no_claim():
    certificate = alignver.check_rank(np.eye(2)).certificate
    result = alignver.recheck(certificate, A=2 * np.eye(2))
    assert (result.verdict, result.code) == ("FAILS", "recheck-not-proved")
    assert "the claim is not refuted" in result.evidence[0]
    assert result.next_steps
    assert not alignver.recheck(certificate, A=np.eye(2)).next_steps


TYPES = {
    "folder": lambda: alignver.check_safe_exploration(np.eye(3), folder=3),
    "folder of mnist": lambda: image_sets.mnist(3),
    "folder of semeion": lambda: semeion(3),
    "path": lambda: _tracker(path=3),
    "rules": lambda: _tracker(rules=5),
    "rules of names": lambda: _tracker(rules=[3]),
    "S": lambda: alignver.check_common_structure(*_net()[:2], S=3),
    "model of optimality": lambda: check_optimality(3, np.eye(2), [1], loss="squared", tolerance=1.0),
    "record": lambda: check_convergence(3, *_point(), loss="squared"),
    "augment": lambda: _wrapper().fit(_net()[1:], 4, augment=3),
    "RUN": lambda: read(3),
}


@pytest.mark.parametrize("name", TYPES)
def test_arguments_of_another_type(name):
    with pytest.raises(InvalidInput, match=f"^{name.partition(' ')[0]}: got") as caught:
        TYPES[name]()
    assert caught.value.code == "wrong-type"


def test_arguments_that_lead_nowhere(tmp_path):
    net, X, _ = _net()
    from alignver.network.feature_extraction import save_features

    for argument, call in (
        ("outputs", lambda: _wrapper(outputs=-1)),
        ("rules", lambda: _tracker(rules=["x"])),
        ("theorem_3", lambda: _tracker(structure=True, theorem_3=3)),
        ("certificate", lambda: alignver.load_certificate(3)),
        ("layer", lambda: save_features(tmp_path / "Z.npy", net, X, 3)),
        ("file", lambda: save_features(tmp_path / "gone" / "Z.npy", net, X)),
    ):
        with pytest.raises(InvalidInput, match=f"^{argument}: got"):
            call()
    assert list(tmp_path.iterdir()) == []
