"""Options of which one would have no effect, and files that would overwrite another, are refused."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.cli import main

RANK = ("check", "rank", "A.npy")

CONFLICTS = {
    "quiet and verbose": ((*RANK, "--quiet", "--verbose"), "--quiet with --verbose"),
    "exact without a proof": ((*RANK, "--method", "exact", "--no-certify"), "exact arithmetic is a proof"),
    "one file for two reports": ((*RANK, "--html", "out", "--junit", "./out"), "the file of --html"),
    "a page over the input": ((*RANK, "--html", "A.npy"), "A.npy, which is read"),
    "a page over an array's file": (("check", "rank", "A.npz:A", "--html", "A.npz"), "A.npz, which is read"),
    "a page over a named input": (("verify", "proof", "--input", "A=A.npy", "--html", "A.npy"), "A.npy, which is read"),
    "JUnit over the input": ((*RANK, "--junit", "./A.npy"), "A.npy, which is read"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_refused(name, tmp_path, monkeypatch, capsys):
    words, expected = CONFLICTS[name]
    np.save(tmp_path / "A.npy", np.eye(2))
    before = (tmp_path / "A.npy").read_bytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main.run(list(words))
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert out == ""
    assert (tmp_path / "A.npy").read_bytes() == before
    assert not (tmp_path / "out").exists()
