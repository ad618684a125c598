"""``alignver check exploration``: files, models, certificates that verify, messages that name the option."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.features.features import features


@pytest.fixture
def folder(files, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    Z = features(60, 9)
    np.save("Z.npy", Z)
    np.save("bare.npy", Z[:, :-1].astype(np.float32))
    np.save("q.npy", np.random.default_rng(0).standard_normal((9, 14)))
    Z[40] = Z[2]
    np.save("equal.npy", Z)
    (files / "short.npy").write_bytes((files / "bare.npy").read_bytes()[:-30])
    np.save("close.npy", np.column_stack([np.random.default_rng(0).standard_normal((6, 2)) * 1e-300, np.ones(6)]))
    np.savez("data.npz", X=np.random.default_rng(0).standard_normal((30, 4)))
    with open("net.py", "w") as file:
        file.write(
            "import torch\n"
            "def build():\n"
            "    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))\n"
            "def dropping():\n"
            "    return torch.nn.Sequential(*build()[:2], torch.nn.Dropout(0.5), torch.nn.Linear(6, 2))\n"
        )
    return files


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["Z.npy", "--width", "8"], 0, "staircase witness"),
        (["bare.npy", "--add-constant"], 0, "the smallest possible width"),
        (["Z.npy", "--width", "6"], 1, "fewer than 60 samples"),
        (["equal.npy", "--width", "30"], 1, "samples 2 and 40 have equal features"),
        (["Z.npy", "--q", "q.npy"], 0, "verified Cholesky"),
        (["Z.npy", "--q", "q.npy", "--method", "dense"], 0, "press gives rank 60"),
        (["Z.npy", "--width", "8", "--delta", "100"], 3, "nothing was proved"),
        (["Z.npy", "--method", "gram", "--tiles", "tiles"], 0, "q sampled"),
        (["--model", "net.py:build", "--data", "data.npz", "--layer", "1"], 0, "30 samples, 7 features"),
        (
            ["--model", "net.py:build", "--data", "data.npz", "--layer", "1", "--estimate-delta"],
            0,
            "numerical: delta is an estimate",
        ),
    ],
)
def test_verdicts(here, folder, arguments, code, words):
    run = here("check", "exploration", *arguments)
    assert run.code == code, run.err
    assert words in run.out
    assert run.err == ""


def test_certificate_is_verified(alignver, here, folder):
    run = alignver("check", "exploration", "Z.npy", "--width", "8", "--certificate", "proof")
    assert "re-check with: alignver verify proof --input Z=Z.npy" in run.out
    assert alignver("verify", "proof", "--input", "Z=Z.npy").code == 0
    assert here("verify", "proof", "--input", "Z=equal.npy").code == 1
    assert here("check", "exploration", "equal.npy", "--width", "30", "--certificate", "no").code == 1
    assert here("verify", "no", "--input", "Z=equal.npy").code == 0


def test_gates_that_overflow_leave_nothing_behind(here, folder):
    run = here("check", "exploration", "close.npy", "--width", "4", "--certificate", "none")
    assert run.code == 3
    assert "nothing was proved for width 4" in run.out
    assert not (folder / "none").exists()


@pytest.mark.parametrize(("size", "arguments"), [(300, []), (6000, ["--method", "gram", "--tiles", "kept"])])
def test_full_disk(alignver, folder, inject, size, arguments):
    """Files larger than ``size`` cannot be written: what is begun is taken away again."""
    injected = inject(f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))")
    before = set(folder.iterdir())
    run = alignver("check", "exploration", "Z.npy", *arguments, "--certificate", "big", injected=injected)
    if arguments:  # tiles are needed for the answer, the certificate comes after it
        assert (run.code, run.out) == (2, "")
    else:
        assert run.code == 70
        assert "HOLDS" in run.out.splitlines()[0]
    assert ("--tiles" if arguments else "--certificate") in run.err
    assert "File too large" in run.err
    created = set(folder.iterdir()) - before - {folder / "kept"}
    assert not created
    assert not (folder / "kept").exists() or not list((folder / "kept").iterdir())


SMALL_TILES = """
import functools, os, signal
from alignver.checks import exploration_report
from alignver.features import cholesky, tiles
exploration_report.prove_definite = functools.partial(cholesky.prove_definite, tile=10)
append = tiles.FolderStore.append
def counting(self, column):
    append(self, column)
    if self.finished == {last}: os.kill(os.getpid(), signal.{signal})
tiles.FolderStore.append = counting
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGKILL", -9)])
def test_ended_in_the_middle(alignver, folder, inject, name, code):
    """Finished tiles stay, and nothing half-written; the next run goes on from them."""
    place = folder / f"tiles-{name}"
    arguments = ["check", "exploration", "Z.npy", "--method", "gram", "--tiles", place.name]
    run = alignver(*arguments, "--certificate", "none", injected=inject(SMALL_TILES.format(last=3, signal=name)))
    assert (run.code, run.out) == (code, "")
    assert run.err == ("alignver: interrupted\n" if name == "SIGINT" else "")
    names = [f"column_{k:05}.npy" for k in range(3)]
    assert sorted(path.name for path in place.iterdir()) == [*names, "tiles.json"]
    assert not (folder / "none").exists()
    stamps = [(place / file).stat().st_mtime_ns for file in names]
    run = alignver(*arguments, injected=inject(SMALL_TILES.format(last=99, signal=name)))
    assert run.code == 0, run.err
    assert [(place / file).stat().st_mtime_ns for file in names] == stamps
    assert len(list(place.glob("column_*.npy"))) == 6


def test_kept_features(here, folder):
    model = ["--model", "net.py:build", "--data", "data.npz", "--layer", "1"]
    run = here("check", "exploration", *model, "--keep-features", "kept.npy", "--certificate", "about-kept")
    assert "re-check with: alignver verify about-kept --input Z=kept.npy" in run.out
    assert here("verify", "about-kept", "--input", "Z=kept.npy").code == 0
    assert np.load(folder / "kept.npy").shape == (30, 6)
    gram = ["--method", "gram", "--certificate", "about-none"]
    run = here("check", "exploration", *model, *gram)
    assert "a re-check needs them, and --keep-features FILE.npy keeps them" in run.out
    run = here("check", "exploration", *model, "--keep-features", "kept.npy")
    assert (run.code, run.out) == (2, "")
    assert "--keep-features: got kept.npy; needs a new file" in run.err


def test_features_of_a_network(here, folder):
    model = ["--model", "net.py:build", "--data", "data.npz"]
    seeded = ["--layer", "1", "--seed", "3", "--tiles", "kept"]
    run = here("check", "exploration", *model, *seeded, "--certificate", "network")
    assert run.code == 0, run.err
    assert "HOLDS  proof (network)" in run.out
    assert "re-check with: alignver verify network --model net.py:build --data data.npz --seed 3" in run.out
    again = here("verify", "network", *model, "--seed", "3")
    assert again.code == 0, again.err
    assert "the graph in the certificate is the one that this model is traced to" in again.out
    other = here("verify", "network", *model)
    assert (other.code, other.out) == (2, "")
    assert "the graph of another network" in other.err
    bare = here("verify", "network", "--model", "net.py:build")
    assert "--data: got no value" in bare.err
    assert "1 of its batches from the folder" in here("check", "exploration", *model, *seeded).out
    run = here("check", "exploration", *model, "--layer", "1", "--keep-features", "F.npy", "--tiles", "kept")
    assert (run.code, run.out) == (2, "")


def test_the_recheck_of_a_model_in_eval_mode(here, folder):
    """The command that the report names has all options of the model, and holds."""
    model = ["--model", "net.py:dropping", "--data", "data.npz", "--eval"]
    run = here("check", "exploration", *model, "--layer", "2", "--certificate", "dropped")
    assert run.code == 0, run.err
    (command,) = (line.partition("re-check with: alignver ")[2] for line in run.out.splitlines() if "re-check" in line)
    assert "--eval" in command
    assert here(*command.split()).code == 0


def test_refutation_is_verified(here, folder):
    """By the rank of Z, which the command that is printed checks again."""
    pytest.importorskip("flint")
    rng = np.random.default_rng(0)
    base = rng.integers(-999, 999, (30, 3)) / 64
    np.save("flat.npy", base @ rng.integers(-3, 4, (3, 6)))
    run = here("check", "exploration", "flat.npy", "--add-constant", "--width", "7", "--certificate", "flat")
    assert run.code == 1
    assert "Z has rank 4 exactly" in run.out
    assert "re-check with: alignver verify flat --input Z=flat.npy" in run.out
    assert here("verify", "flat", "--input", "Z=flat.npy").code == 0


def test_cluster(alignver, here, folder):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        address = ["--scheduler", cluster.scheduler_address]
        run = alignver("check", "exploration", "Z.npy", *address, "--certificate", "there")
        assert run.code == 0, run.err
        assert run.err == ""
        assert here("verify", "there", "--input", "Z=Z.npy").code == 0
        run = alignver("check", "exploration", "Z.npy", "--method", "gram", "--tiles", "shared", *address)
        assert run.code == 0, run.err
        run = here("check", "exploration", "Z.npy", "--method", "gram", *address)
        assert run.code == 2
        assert "--tiles: got a client without a folder" in run.err


def test_json(here, folder):
    run = here("check", "exploration", "Z.npy", "--json")
    document = run.document()
    assert document["results"][0]["measured"]["width"] == 7
    assert document["provenance"]["inputs"]["Z"]["file"] == "Z.npy"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model with --data"),
        (["bare.npy"], "or --add-constant"),
        (["Z.npy", "--width", "0"], "--width: got 0"),
        (["Z.npy", "--q", "Z.npy"], "q (Z.npy): got shape (60, 9)"),
        (["Z.npy", "--model", "net.py:build"], "a model as well as the features Z.npy"),
        (["--model", "net.py:build"], "--data: got no file"),
        (["--model", "net.py:build", "--data", "data.npz", "--layer", "5"], "--layer: got '5'"),
        (["Z.npy", "--estimate-delta"], "--estimate-delta"),
        (["Z.npy", "--keep-features", "F.npy"], "--keep-features: got F.npy, which would have"),
        (["Z.npy", "--layer", "1"], "--layer: got 1, which would have no effect; needs --model"),
        (["Z.npy", "--data", "data.npz"], "--data: got data.npz, which would have no effect"),
        (["Z.npy", "--tiles", "tiles"], "--tiles: got tiles, which would have no effect; needs --method gram"),
        (["Z.npy", "--device", "cuda"], "--device: got cuda; needs cpu"),
        (["--model", "net.py:build", "--data", "data.npz", "--keep-features", "F"], "needs a new file, FILE.npy"),
        (["missing.npy"], "no such file"),
        (["short.npy"], "short.npy"),
        (["Z.npy", "--scheduler", "gopher://host:1"], "--scheduler: got gopher://host:1 (unknown address scheme"),
        (["Z.npy", "--method", "gram", "--device", "cuda:77"], "--device"),
    ],
)
def test_bad_input(here, folder, arguments, words):
    run = here("check", "exploration", *arguments)
    assert run.code == 2
    assert words in run.err
    assert run.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "mnist"], "ALIGNVER_DATA"),
        (["--dataset", "svhn", "--data-folder", "."], "train_32x32.mat"),
        (["--dataset", "imagenet"], "imagenet"),
    ],
)
def test_reproduce_says_what_it_needs(here, folder, arguments, words):
    run = here("reproduce", "table2", *arguments)
    assert run.code == 2
    assert words in run.err
