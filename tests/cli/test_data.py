"""``alignver check data``: the files it takes, what it says, and the certificate that it leaves."""

from __future__ import annotations

import numpy as np
import pytest

X = np.random.default_rng(0).random((20, 3))
X[5] = X[9]
Y = np.arange(20) % 3  # samples 5 and 9 have the labels 2 and 0
AGREE = np.where(np.arange(20) == 5, 0, Y)


@pytest.fixture(scope="module", autouse=True)
def samples(files):
    folder = files / "data"
    folder.mkdir(exist_ok=True)
    np.savez(folder / "train.npz", X=X, Y=Y, X_test=X[:3], Y_test=Y[:3] + 1)
    np.savez(folder / "lower.npz", x_train=X, y_train=AGREE)
    np.savez(folder / "test.npz", X=X[4:6], Y=[1, 2])
    np.save(folder / "X.npy", X)
    np.save(folder / "Y.npy", Y)
    np.savez(folder / "odd.npz", A=X)
    np.savez(folder / "short.npz", X=X, Y=Y[:3])
    np.savez(folder / "images.npz", X=np.repeat(X[:, :, None], 3, axis=2), Y=Y)
    return folder


def test_a_conflict_and_its_certificate(here, tmp_path):
    run = here("check", "data", "data/train.npz", "--loss", "cross_entropy", "--certificate", str(tmp_path / "proof"))
    assert (run.code, run.err) == (1, "")
    words = " ".join(run.out.split())
    for sentence in (
        "samples 5 and 9 have equal inputs and different labels (2, 0): no model fits both",
        "every model has a cross-entropy loss of at least 0.0693147 and at least 1 training error",
        "19 of 20 inputs are distinct: rank phi is at most 19",
        "3 of 3 test samples equal a training sample, 3 of them with another target",
        "--input X=data/train.npz:X --input Y=data/train.npz:Y",
    ):
        assert sentence in words
    inputs = ["--input", "X=data/train.npz:X", "--input", "Y=data/train.npz:Y"]
    assert here("verify", str(tmp_path / "proof"), *inputs).code == 0
    assert here("verify", str(tmp_path / "proof"), *inputs[:2], "--input", "Y=data/lower.npz:y_train").code == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["data/lower.npz", "--loss", "cross_entropy"], 0),
        (["data/lower.npz", "--loss", "ce"], 0),
        (["data/X.npy", "--targets", "data/Y.npy", "--test", "data/test.npz"], 1),
        (["data/X.npy", "--test", "data/X.npy"], 1),
        (["data/X.npy", "--targets", "data/Y.npy", "--dtype", "float32", "--loss", "squared"], 1),
        (["both.npz:J"], 0),
    ],
)
def test_the_files_that_are_taken(here, arguments, code):
    run = here("check", "data", *arguments, "--json")
    document = run.document()
    assert (run.code, run.err) == (code, "")
    assert document["results"][0]["name"] == "data"
    assert document["provenance"]["command"] == "check data"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data/odd.npz"], "DATA (data/odd.npz): got the arrays A; needs inputs under the name X"),
        (["data/none.npz"], "X (data/none.npz): got no such file"),
        (["data/short.npz"], "Y (data/short.npz:Y): got 3 targets for 20 samples in X"),
        (["data/train.npz", "--targets", "data/Y.npy"], "--targets: got data/Y.npy as well as data/train.npz:Y"),
        (["data/X.npy", "--loss", "squared"], "Y: got no targets; needs targets for --loss squared"),
        (["data/X.npy", "--test", "data/odd.npz"], "--test (data/odd.npz): got the arrays A"),
        (["data/train.npz", "--loss", "hinge"], "--loss"),
        (["data/X.npy", "--test", "both.npz:J"], "X_test (both.npz:J): got samples of shape (20,), but (3,) in X"),
    ],
)
def test_bad_files_are_named(here, arguments, words):
    run = here("check", "data", *arguments)
    assert (run.code, run.out) == (2, "")
    assert words in " ".join(run.err.split())


def test_the_page_shows_the_pair(here, tmp_path):
    pytest.importorskip("matplotlib")
    run = here("check", "data", "data/images.npz", "--html", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert run.code == 1
    assert "sample 5" in page
    assert "sample 9" in page


def test_it_needs_no_torch(alignver, inject):
    """The data are looked at where torch is not installed."""
    block = inject(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    run = alignver("check", "data", "data/train.npz", "--loss", "cross_entropy", injected=block)
    assert (run.code, run.err) == (1, "")
