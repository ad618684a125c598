"""Equal inputs and their targets, from whatever holds them."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import alignver as av
from alignver.data import semeion
from alignver.errors import InvalidInput
from alignver.kernel import seal
from alignver.results import CheckResult, Rigor, Verdict

X = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [0.0, 5.0], [3.0, 4.0], [-0.0, 5.0], [1.0, 2.0]])
LABELS = np.array([0, 1, 1, 0, 1, 0, 0])


class Pairs(Dataset):
    """Samples (x, y) by index."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if not 0 <= i < len(self.x):
            raise IndexError(i)
        return self.x[i], self.y[i]


class Stream(IterableDataset):
    def __init__(self, items, length=None):
        self.items, self.length = items, length

    def __iter__(self):
        return iter(self.items)

    def __len__(self):
        if self.length is None:
            raise TypeError
        return self.length


def test_a_conflict_is_proved_and_bounded():
    result = av.check_data(X, LABELS, loss="cross_entropy")
    assert (result.verdict, result.rigor, result.name) == (Verdict.FAILS, Rigor.PROOF, "data")
    assert result.reason == (
        "samples 0 and 2 have equal inputs and different labels (0, 1): no model fits both; 1 other pair conflicts "
        "(2 and 6)"
    )
    measured = result.measured
    assert measured["equal"] == {"count": 5, "pairs": ((0, 2), (0, 6), (1, 4), (2, 6), (3, 5))}
    assert measured["conflicts"] == {"count": 2, "pairs": ((0, 2), (2, 6))}
    assert (measured["samples"], measured["distinct"], measured["rank_phi_upper"]) == (7, 3, 3)
    assert measured["loss_lower"] == pytest.approx((2 * math.log(1.5) + math.log(3)) / 7, rel=1e-9)
    assert measured["errors_lower"] == 1
    assert "2 pairs in conflict: 0 and 2 (0, 1), 2 and 6 (1, 0)" in result.evidence
    assert "3 pairs with equal targets: 0 and 6, 1 and 4, 3 and 5" in result.evidence
    assert result.witness == {"kind": "equal inputs", "samples": (0, 2), "targets": ((0.0,), (1.0,))}
    assert av.recheck(result.certificate, X=X, Y=LABELS).verdict is Verdict.HOLDS
    assert CheckResult.from_dict(result.to_dict()) == result


def test_without_targets_the_question_is_whether_inputs_are_distinct():
    result = av.check_data(X)
    assert (result.verdict, result.rigor) == (Verdict.FAILS, Rigor.PROOF)
    assert result.statement == "Distinct inputs (no two samples are equal)"
    assert result.reason == "samples 0 and 2 have equal inputs: every model gives them the same output"
    assert av.recheck(result.certificate, X=X).verdict is Verdict.HOLDS
    distinct = av.check_data(X[[0, 1, 3]])
    assert (distinct.verdict, distinct.reason) == (Verdict.HOLDS, "all 3 inputs are distinct")
    assert av.recheck(distinct.certificate, X=X[[0, 1, 3]]).verdict is Verdict.HOLDS
    assert av.recheck(distinct.certificate, X=X[:3]).verdict is Verdict.FAILS


def test_equal_targets_are_no_conflict():
    result = av.check_data(X, [0, 1, 0, 2, 1, 2, 0], loss="cross_entropy")
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert result.reason == "equal inputs have equal targets (5 pairs of equal inputs)"
    assert (result.measured["loss_lower"], result.measured["errors_lower"]) == (0.0, 0)
    assert result.evidence == (
        "5 pairs with equal targets: 0 and 2, 0 and 6, 1 and 4, 2 and 6, 3 and 5",
        "3 of 7 inputs are distinct: rank phi is at most 3 for every theta and all gates, below n = 7, so Assumption 4 "
        "fails",
    )
    assert result.certificate.data["digests"].shape == (3, 32)
    assert av.recheck(result.certificate, X=X, Y=[0, 1, 0, 2, 1, 2, 0]).verdict is Verdict.HOLDS
    assert av.recheck(result.certificate, X=X, Y=LABELS).verdict is Verdict.FAILS
    distinct = av.check_data(X[:2], [5, 5])
    assert (distinct.reason, distinct.evidence) == ("all 2 inputs are distinct", ())


@pytest.mark.parametrize(
    ("loss", "Y", "lower", "errors"),
    [
        ("squared", [[0.0], [1.0], [1.0], [0.0], [1.0], [0.0], [0.5]], (1.25 - 1.5**2 / 3) / 7, None),
        ("squared", [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0, 0], [1, 0], [0, 0], [0.0, 1.0]], (1 - 1 / 3) / 7, None),
        ("cross_entropy", np.eye(2)[LABELS], (2 * math.log(1.5) + math.log(3)) / 7, 1),
        ("binary_cross_entropy", LABELS, (2 * math.log(1.5) + math.log(3)) / 7, 1),
        ("binary_cross_entropy", np.eye(2)[LABELS], 2 * (2 * math.log(1.5) + math.log(3)) / 7, 2),
        (None, LABELS, None, 1),
        (None, LABELS + 0.5, None, None),
    ],
)
def test_each_loss_has_its_bound(loss, Y, lower, errors):
    result = av.check_data(X, Y, loss=loss)
    assert result.verdict is Verdict.FAILS
    assert result.measured["loss_lower"] == (None if lower is None else pytest.approx(lower, rel=1e-9))
    assert result.measured["errors_lower"] == errors


def test_labels_of_several_outputs_are_counted_by_output():
    result = av.check_data([[1.0], [1.0]], [[1, 1, 1, 1], [0, 0, 0, 0]], loss="binary_cross_entropy")
    assert "at least 4 wrong outputs (of 8)" in result.evidence[0]
    again = av.recheck(result.certificate, X=[[1.0], [1.0]], Y=[[1, 1, 1, 1], [0, 0, 0, 0]])
    assert "at least 4 wrong outputs" in again.reason


def test_targets_that_few_digits_do_not_tell_apart_are_shown_in_all():
    result = av.check_data([[0.0], [0.0]], [0.1, math.nextafter(0.1, 1.0)], loss="squared")
    assert "different targets (0.1, 0.10000000000000002)" in result.reason
    assert str(av.check_data([[0.0], [1.0]], [0.5, -0.5], loss="squared").measured["loss_lower"]) == "0.0"


def test_soft_labels_cost_their_entropy():
    """Smoothed labels: the formula for rows of targets, of single samples too."""
    smooth = np.full((7, 2), 0.05) + 0.9 * np.eye(2)[[0, 1, 0, 2 % 2, 1, 0, 0]]
    result = av.check_data(X, smooth, loss="cross_entropy")
    entropy = -(0.95 * math.log(0.95) + 0.05 * math.log(0.05))
    assert result.verdict is Verdict.HOLDS
    assert result.measured["loss_lower"] == pytest.approx(entropy, rel=1e-9)
    assert result.measured["loss_lower"] <= entropy
    assert result.measured["errors_lower"] is None


def sources():
    """The same samples in every form that they can come in."""
    x, y = torch.from_numpy(X).float(), torch.from_numpy(LABELS)
    single = X.astype(np.float32)
    return {
        "tensors": (x, y),
        "bfloat16": (x.bfloat16(), y),
        "a tensor with a gradient": (x.clone().requires_grad_(), y),
        "lists": (single.tolist(), LABELS.tolist()),
        "big-endian": (single.astype(">f4"), LABELS.astype(">i8")),
        "columns first": (np.asfortranarray(single), LABELS),
        "integers": (X.astype(np.uint8), LABELS),
        "a data set": (Pairs(single, LABELS), None),
        "a TensorDataset": (TensorDataset(x, y), None),
        "a subset": (Subset(TensorDataset(x, y), range(7)), None),
        "a loader": (DataLoader(TensorDataset(x, y), batch_size=3), None),
        "a loader of inputs alone": (DataLoader(TensorDataset(x), batch_size=3), LABELS),
        "a stream": (Stream(list(zip(single, LABELS))), None),
        "images": (np.repeat(single[:, :, None], 4, axis=2), LABELS),
    }


@pytest.mark.parametrize("name", sources())
def test_samples_come_in_many_forms(name):
    x, y = sources()[name]
    result = av.check_data(x, y, loss="cross_entropy")
    wanted = av.check_data(X, LABELS, loss="cross_entropy")
    assert (result.verdict, result.reason) == (wanted.verdict, wanted.reason)
    for key in ("equal", "conflicts", "loss_lower", "errors_lower", "distinct"):
        assert result.measured[key] == wanted.measured[key]
    given = {"X": x} if y is None else {"X": x, "Y": y}
    assert av.recheck(result.certificate, **given).verdict is Verdict.HOLDS
    assert av.recheck(result.certificate, X=2 * X, Y=LABELS).verdict is Verdict.FAILS


def test_reading_a_loader_draws_nothing_from_the_callers_generator():
    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(LABELS)), batch_size=2)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    av.check_data(loader)
    assert torch.equal(torch.rand(3), wanted)


def test_a_loader_with_workers_gives_the_same():
    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(LABELS)), batch_size=2, num_workers=2)
    assert av.check_data(loader).measured["conflicts"]["count"] == 2


def test_images_in_folders(tmp_path):
    """A data set opens its files when it is asked for them, and gives images of Pillow."""
    image = pytest.importorskip("PIL.Image")
    source = np.random.default_rng(0)
    pixels = source.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    pixels[3] = pixels[1]
    for i, one in enumerate(pixels):
        image.fromarray(one).save(tmp_path / f"{i}.png")

    class Folder(Dataset):
        def __len__(self):
            return len(list(tmp_path.glob("*.png")))

        def __getitem__(self, i):
            with image.open(tmp_path / f"{i}.png") as opened:
                return opened.convert("RGB"), i % 4

    result = av.check_data(Folder())
    assert result.measured["conflicts"]["pairs"] == ((1, 3),)
    assert result.certificate.inputs["X"]["shape"] == (4, 6, 5, 3)
    assert av.recheck(result.certificate, X=Folder()).verdict is Verdict.HOLDS
    image.fromarray(pixels[0, :4]).save(tmp_path / "4.png")
    with pytest.raises(av.InvalidInput, match=r"^X: got sample 4 of shape \(4, 5, 3\)"):
        av.check_data(Folder())


@pytest.mark.parametrize("shape", [None, 5, (10**9, 1), (7,), (7, 2.0), ("7", 2)])
def test_a_stream_is_not_read_by_the_sizes_of_a_hostile_certificate(shape):
    certificate = av.check_data(Pairs(X, LABELS)).certificate
    record = dict(certificate.inputs["X"]) | {"shape": shape}
    inputs = {**certificate.inputs, "X": record}
    forged = seal(certificate.claim, certificate.method, inputs, certificate.data, certificate.constants)
    with pytest.raises(av.InvalidInput, match=r"^X: got samples of shape \(2,\) for a certificate about"):
        av.recheck(forged, X=Pairs(X, LABELS))


def test_a_data_set_of_the_package():
    digits = semeion()
    result = av.check_data(digits, loss="cross_entropy")
    assert (result.verdict, result.reason) == (Verdict.HOLDS, "all 1593 inputs are distinct")


def test_a_memory_map_is_read_a_block_at_a_time(tmp_path):
    n = 20000
    big = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype=np.uint8, shape=(n, 64, 64))
    big[:, 0, 0], big[:, 0, 1], big[:, 0, 2] = (np.arange(n) // 256**k % 256 for k in range(3))
    big[n - 1] = big[5]
    big.flush()
    tracemalloc.start()
    result = av.check_data(np.load(tmp_path / "X.npy", mmap_mode="r"), np.arange(n) % 7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.measured["conflicts"]["pairs"] == ((5, n - 1),)
    assert peak < 60e6  # the file has 82 MB; a block of 8 MB, its copy, and what is kept of each sample


def test_numbers_are_compared_after_the_cast():
    close = np.array([[1.0], [1.0 + 2.0**-40]])
    assert av.check_data(close, [0, 1]).verdict is Verdict.HOLDS
    rounded = av.check_data(close, [0, 1], dtype="float32")
    assert rounded.verdict is Verdict.FAILS
    assert av.recheck(rounded.certificate, X=close, Y=[0, 1]).verdict is Verdict.HOLDS
    tiny = np.array([[5e-324], [0.0]])
    assert av.check_data(tiny, [0, 1]).verdict is Verdict.HOLDS
    large = np.array([[2**60], [2**60 + 1]])
    assert av.check_data(large, [0, 1]).verdict is Verdict.HOLDS  # as the integers that they are


def test_samples_that_tests_have_seen():
    test = np.array([[9.0, 9.0], [3.0, 4.0], [0.0, 5.0]])
    result = av.check_data(X[1:4], LABELS[1:4], X_test=test, Y_test=[0, 1, 2])
    assert result.measured["test"] == {
        "samples": 3,
        "seen": 2,
        "pairs": ((1, 0), (2, 2)),
        "conflicts": {"count": 1, "pairs": ((2, 2),)},
    }
    assert result.evidence[-1] == (
        "2 of 3 test samples equal a training sample, 1 of them with another target (test 2 and training 2, targets 2 "
        "and 0)"
    )
    assert result.verdict is Verdict.HOLDS  # the question is about the training data
    loader = DataLoader(TensorDataset(torch.from_numpy(test).float(), torch.tensor([0, 1, 2])))
    mixed = av.check_data(X[1:4], LABELS[1:4], X_test=loader)  # float64 beside float32
    assert mixed.measured["test"] == result.measured["test"]
    both = av.check_data([[0.0], [0.0]], [0, 1], X_test=[[0.0], [0.0]], Y_test=[1, 0])
    assert both.measured["test"]["conflicts"] == {"count": 2, "pairs": ((0, 0), (1, 1))}
    assert any(
        line.startswith("X is float64, X_test float32: they are compared without rounding") for line in mixed.evidence
    )
    none = av.check_data(X, LABELS, X_test=test + 100.0)
    assert none.evidence[-1] == "none of the 3 test samples is a training sample"


class Noisy(Pairs):
    def __getitem__(self, i):
        return super().__getitem__(i)[0] + torch.randn(()), 0


class Relabelled(Pairs):
    calls = 0

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        Relabelled.calls += 1
        return x, y + (Relabelled.calls > len(self))


class Short(Pairs):
    def __len__(self):
        return len(self.x) + 2


class Broken(Pairs):
    def __getitem__(self, i):
        if i == 3:
            raise OSError("image file is truncated")
        return super().__getitem__(i)


T, L = torch.from_numpy(X), torch.from_numpy(LABELS)
BAD = {
    "ragged lists": (([[1.0], [1.0, 2.0]], [0, 1]), r"^X: .*equal length"),
    "ragged samples": ((Pairs([np.zeros(2), np.zeros(3)], [0, 1]), None), r"^X: got sample 1 of shape \(3,\)"),
    "samples of two dtypes": ((Pairs([np.zeros(2), np.zeros(2, int)], [0, 1]), None), r"^X: got sample 1 .*int64"),
    "objects": ((np.array([[1.0, None]], dtype=object), [0]), r"^X: .*dtype object.*astype\(float\)"),
    "words": ((np.array([["a"], ["b"]]), [0, 1]), r"^X: .*dtype <U1.*unique"),
    "complex numbers": ((np.ones((2, 1)) * 1j, [0, 1]), r"^X: .*complex128.*real"),
    "dates": ((np.array(["2020-01-01"], dtype="M8[D]"), [0]), r"^X: .*datetime64"),
    "long doubles": ((np.ones((2, 1), dtype=np.longdouble), [0, 1]), r"^X: .*longdouble|float128"),
    "NaN": ((np.array([[1.0], [np.nan]]), [0, 1]), r"^X: got NaN or Inf at sample 1"),
    "Inf in a stream": (
        (Pairs(np.array([[1.0], [2.0], [np.inf]]), [0, 1, 1]), None),
        r"^X: got NaN or Inf at sample 2",
    ),
    "no samples": ((np.zeros((0, 3)), []), r"^X: got shape \(0, 3\)"),
    "an empty stream": ((Stream([]), None), r"^X: got no samples"),
    "a nested tensor": (
        (torch.nested.as_nested_tensor([T[0], T[1]], layout=torch.jagged), [0, 1]),
        r"^X: got a nested tensor",
    ),
    "a number": ((3.0, [0]), r"^X: got a float"),
    "nothing": ((None, [0]), r"^X: got None"),
    "a dict": (({"a": 1}, [0]), r"^X: got 0 rows of 'a'; needs a row of each input"),
    "a generator": (((x for x in X), LABELS), r"^X: got a generator, which can be read once"),
    "fewer targets": ((X, LABELS[:6]), r"^Y: got 6 targets for 7 samples in X"),
    "targets of three dimensions": ((X, np.zeros((7, 1, 1))), r"^Y: got shape \(7, 1, 1\)"),
    "targets that are NaN": ((X, [0.0, np.nan, 0, 0, 0, 0, 0]), r"^Y: got NaN or Inf at sample 1"),
    "targets twice": ((TensorDataset(T, L), LABELS), r"^Y: got targets in addition to those in X"),
    "words and numbers": ((X, ["a", 1, None, 2, 3, 4, 5]), r"^Y: got entries of dtype object"),
    "texts": ((Stream(["x"]), None), r"^X: got samples that are a str"),
    "a loader that shuffles": ((DataLoader(TensorDataset(T, L), shuffle=True), None), r"^X: .*shuffles.*shuffle=False"),
    "a loader that drops": (
        (DataLoader(TensorDataset(T, L), batch_size=4, drop_last=True), None),
        r"4 samples of .* 7",
    ),
    "augmentation": ((Noisy(T, L), None), r"^X: got another sample 0 when read again: it augments"),
    "targets that change": ((Relabelled(T, L), None), r"^Y: got other targets when read again"),
    "a stream that ends early": ((Stream(list(zip(X, LABELS)), length=9), None), r"^X: got 7 samples, .*length is 9"),
    "a data set that ends early": ((Short(T, L), None), r"^X: got samples that cannot be read"),
    "a file that is damaged": ((Broken(T, L), None), r"^X: got samples that cannot be read \(image file is truncated"),
    "sparse": ((T.to_sparse(), L), r"^X: "),
    "masked": ((np.ma.masked_array(X), LABELS), r"^X: got a masked array"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    (x, y), words = BAD[name]
    with pytest.raises(av.InvalidInput, match=words):
        av.check_data(x, y)


def test_a_stream_that_shuffles_by_itself_is_named():
    class Shuffled(Stream):
        def __iter__(self):
            order = torch.randperm(len(self.items)).tolist()
            return iter([self.items[i] for i in order])

    torch.manual_seed(0)
    with pytest.raises(av.InvalidInput, match=r"another order when read again: it shuffles"):
        av.check_data(Shuffled(list(zip(np.arange(40.0)[:, None], range(40)))))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "hinge"}, r"^loss: got loss='hinge'"),
        ({"dtype": "int8"}, r"^dtype: got dtype='int8'"),
        ({"dtype": "float16", "X": X * 1e6}, r"^X: got NaN or Inf at sample 0; needs finite numbers of float16"),
        ({"Y": None, "loss": "squared"}, r"^Y: got no targets"),
        ({"Y": [-1, 0, 0, 0, 0, 0, 0], "loss": "cross_entropy"}, r"^Y: .*\(Y \+ 1\) / 2"),
        ({"Y": [0.5, 0, 0, 0, 0, 0, 0], "loss": "cross_entropy"}, r"^Y: "),
        ({"Y": -np.eye(7), "loss": "cross_entropy"}, r"^Y: "),
        ({"Y": [2, 0, 0, 0, 0, 0, 0], "loss": "binary_cross_entropy"}, r"^Y: .*from 0 to 1"),
        ({"Y_test": LABELS}, r"^Y_test: got targets without X_test"),
        ({"X_test": X[:, :1]}, r"^X_test: got samples of shape \(1,\), but \(2,\) in X"),
        ({"X_test": X, "Y_test": np.eye(7)}, r"^Y_test: got 7 columns, but 1 in Y"),
        ({"X_test": X, "Y_test": LABELS[:2]}, r"^Y_test: got 2 targets for 7 samples in X_test"),
        ({"X_test": X * np.nan}, r"^X_test: got NaN or Inf at sample 0"),
        ({"X": np.array([[2**60], [2**60 + 1]]), "Y": [0, 1], "X_test": [[1.5]]}, r"^X: got integers beyond 2\*\*53"),
    ],
)
def test_bad_options_are_named(options, words):
    arguments = {"X": X, "Y": LABELS} | options
    with pytest.raises(av.InvalidInput, match=words):
        av.check_data(arguments.pop("X"), arguments.pop("Y"), **arguments)


def test_many_equal_samples_take_no_time():
    n = 20000
    Y = np.zeros(n, dtype=int)
    Y[-1] = 1
    result = av.check_data(np.zeros((n, 3)), Y, loss="cross_entropy")
    assert result.measured["conflicts"]["count"] == n - 1
    assert result.measured["conflicts"]["pairs"] == tuple((i, n - 1) for i in range(20))
    assert result.measured["equal"]["count"] == n * (n - 1) // 2
    assert result.cost["seconds"] < 5.0


class Sentences(torch.utils.data.Dataset):
    """Samples as those of a tokenizer: 1 and 3 differ in the mask alone, 0 and 4 in nothing."""

    ids = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [4, 5, 6], [1, 2, 3]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    labels = torch.tensor([0, 1, 0, 0, 1])

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": self.labels[i]}


def as_tuples(item):
    return item["input_ids"], item["attention_mask"].float(), item["labels"]


@pytest.mark.parametrize(
    "X",
    [
        Sentences(),
        DataLoader(Sentences(), batch_size=2),
        {"input_ids": Sentences.ids, "attention_mask": Sentences.mask, "labels": Sentences.labels},
        [as_tuples(item) for item in Sentences()],
        DataLoader([as_tuples(item) for item in Sentences()], batch_size=2),
        DataLoader([(tuple(as_tuples(item)[:2]), item["labels"]) for item in Sentences()], batch_size=3),
    ],
    ids=["dicts", "batches of dicts", "a dict", "tuples", "batches of tuples", "pairs of tuples"],
)
def test_several_inputs_are_one_sample(X):
    if isinstance(X, list):
        X = torch.utils.data.ConcatDataset([X])
    result = av.check_data(X, loss="cross_entropy")
    assert (result.verdict, result.rigor) == (Verdict.FAILS, Rigor.PROOF)
    assert result.witness["samples"] == (0, 4)
    assert result.measured["distinct"] == 4
    assert av.recheck(result.certificate, X=X).verdict is Verdict.HOLDS


def test_inputs_of_several_structures_are_not_one_sample():
    # Side by side, the numbers of the first two samples would be equal.
    samples = [{"a": np.ones(1), "b": np.zeros(2), "y": 0}, {"a": np.array([1.0, 0.0]), "b": np.zeros(1), "y": 1}]
    with pytest.raises(InvalidInput, match=r"'a' \(2,\) float64, 'b' \(1,\) float64, but 'a' \(1,\)"):
        av.check_data(torch.utils.data.ConcatDataset([samples]))
    with pytest.raises(InvalidInput, match="2 rows of 'a', 3 rows of 'b'; needs a row of each"):
        av.check_data({"a": np.ones((2, 3)), "b": np.ones((3, 3))})
    with pytest.raises(InvalidInput, match="targets in addition"):
        av.check_data({"a": np.ones((2, 3)), "labels": [0, 1]}, [0, 1])
    with pytest.raises(InvalidInput, match="integers beyond"):
        av.check_data({"a": np.ones((2, 3)), "b": np.array([2**60, 2**60 + 1])})
