"""Everything a person can get wrong: exit code 2, one message that names the thing and the remedy, an empty stdout."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from alignver.cli import input_files as loading
from alignver.cli import main
from alignver.errors import InvalidInput


def npy(array):
    return lambda path: np.save(path, array, allow_pickle=True)


def raw(content):
    return lambda path: path.write_bytes(content)


def truncated(path):
    np.save(path, np.eye(50))
    path.write_bytes(path.read_bytes()[:900])


def doubled(path):
    with path.open("wb") as stream:
        np.save(stream, np.eye(2))
        np.save(stream, np.eye(2))


def bomb(path):
    """A header that promises far more than there is."""
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**6)})
        stream.write(b"\0" * 64)


def damaged_npz(path):
    np.savez(path, A=np.arange(1000.0).reshape(10, 100))
    content = bytearray(path.read_bytes())
    content[300:400] = bytes(100)
    path.write_bytes(content)


def short_npz(path):
    np.savez(path, A=np.eye(30))
    path.write_bytes(path.read_bytes()[:400])


def lying_npz(path):
    with zipfile.ZipFile(path, "w") as archive, archive.open("A.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**6)})


BAD = {
    "nan.npy": (npy(np.array([[1.0, np.nan]])), ["nan", "(0, 1)", "finite"]),
    "inf.npy": (npy(np.array([[np.inf, 1.0]])), ["inf", "finite"]),
    "empty_shape.npy": (npy(np.zeros((0, 3))), ["(0, 3)", "not empty"]),
    "zero_d.npy": (npy(np.array(1.0)), ["0 dimensions"]),
    "one_d.npy": (npy(np.ones(3)), ["1 dimension", "matrix"]),
    "three_d.npy": (npy(np.ones((2, 2, 2))), ["3 dimensions"]),
    "complex.npy": (npy(np.eye(2) * 1j), ["complex128"]),
    "strings.npy": (npy(np.array([["a", "b"]])), ["<U1"]),
    "object.npy": (npy(np.array([[1, None]], dtype=object)), ["pickled", "never opened", "astype(float)"]),
    "structured.npy": (npy(np.zeros(3, dtype=[("a", "f8"), ("b", "i4")])), ["dtype"]),
    "big_integers.npy": (npy(np.array([[2**60, 1]])), ["2**53"]),
    "truncated.npy": (truncated, ["truncated", "772 of 20000 bytes"]),
    "doubled.npy": (doubled, ["after the array", "one array"]),
    "bomb.npy": (bomb, ["truncated"]),
    "header.npy": (raw(b"\x93NUMPY\x01\x00\x10\x00{'descr': import "), ["damaged .npy header"]),
    "version.npy": (raw(b"\x93NUMPY\x09\x00\x10\x00" + b" " * 16), ["9.0", "save it again"]),
    "empty.npy": (raw(b""), ["an empty file"]),
    "text.npy": (raw(b"1 2 3\n"), ["does not begin like one"]),
    "pickled.npy": (raw(pickle.dumps(np.eye(2), protocol=4)), ["pickle", "run code"]),
    "pickled.pkl": (raw(pickle.dumps([1, 2], protocol=4)), ["pickle"]),
    "damaged.npz": (damaged_npz, ["damaged .npz", "intact"]),
    "short.npz": (short_npz, ["damaged .npz"]),
    "lying.npz": (lying_npz, ["truncated"]),
    "several.npz": (lambda path: np.savez(path, P=np.eye(2), Q=np.eye(2)), ["P, Q", "several.npz:P"]),
    "none.npz": (lambda path: zipfile.ZipFile(path, "w").close(), ["without arrays"]),
    "object.npz": (lambda path: np.savez(path, A=np.array([None])), ["pickled"]),
    "ragged.csv": (raw(b"1,2,3\n4,5\n"), ["not a table", "equally many"]),
    "names.csv": (raw(b"a,b\n1,2\n"), ["column names", "#"]),
    "missing.csv": (raw(b"1,NA\n2,3\n"), ["not a table", "equally many"]),
    "numbered.csv": (raw(b"0,1\n0.5,1.5\n2.5,3.0\n"), ["numbers the columns", "#", "0.0 for 0"]),
    "words.txt": (raw(b"one two\nthree four\n"), ["not a table"]),
    "complex.txt": (raw(b"1+2j 3\n"), ["not a table", "real"]),
    "nan.csv": (raw(b"1,nan\n"), ["nan", "finite"]),
    "blank.csv": (raw(b"\n# nothing\n\n"), ["no numbers"]),
    "binary.txt": (raw(b"\xff\xfe\x00\x81"), ["not text"]),
    "matrix.h5": (raw(b"\x89HDF\r\n\x1a\n" + b"\0" * 64), ["HDF5", "numpy.save"]),
    "matrix.mat": (raw(b"MATLAB 5.0 MAT-file" + b"\0" * 64), ["MATLAB"]),
    "matrix.mtx": (raw(b"%%MatrixMarket matrix\n"), ["Matrix Market"]),
    "matrix.json": (raw(b"[[1]]"), ["type .json"]),
    "folder.npy": (lambda path: path.mkdir(), ["a folder"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name(here, tmp_path, name):
    make, words = BAD[name]
    path = tmp_path / name
    make(path)
    run = here("check", "rank", str(path), "--json")
    assert (run.code, run.out) == (2, "")
    assert "Traceback" not in run.err
    assert run.err.startswith("alignver: A (")
    for word in (str(path), "needs", *words):
        assert word in run.err


def test_a_missing_file_suggests_its_neighbour(alignver):
    run = alignver("check", "membership", "J.npz", "Y.npy")
    assert (run.code, run.out) == (2, "")
    assert run.err == "alignver: J (J.npz): got no such file; needs an existing file; did you mean J.npy?\n"


def test_a_missing_folder_is_named(here):
    assert "no folder nowhere" in here("check", "rank", "nowhere/A.npy").err


def test_an_unreadable_file(here, monkeypatch, tmp_path):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    np.save(tmp_path / "A.npy", np.eye(2))
    monkeypatch.setattr(loading.Path, "open", refuse)
    run = here("check", "rank", str(tmp_path / "A.npy"))
    assert run.code == 2
    assert "permission denied" in run.err


def test_a_pipe_is_refused_rather_than_waited_for(here, tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.npy")
    assert "pipe" in here("check", "rank", str(tmp_path / "pipe.npy")).err


def test_the_key_of_an_npz_that_is_not_there(here):
    run = here("check", "rank", "both.npz:K")
    assert run.code == 2
    assert "the arrays J, y" in run.err


def test_shapes_that_disagree_name_both(here):
    run = here("check", "membership", "J.npy", "off.txt")
    assert run.code == 2
    assert run.err == "alignver: y (off.txt): got 3 entries for 8 rows of J; needs an entry per row of J\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chekc"], ["no such command"]),
        (["check", "membership", "J.npy"], ["missing argument", "--help"]),
        (["check", "rank", "J.npy", "--bogus"], ["no such option"]),
        (["check", "rank", "J.npy", "--rank", "three"], ["--rank", "integer"]),
        (["check", "rank", "J.npy", "--backend", "jax"], ["--backend", "numpy"]),
        (["check", "rank", "J.npy", "--device", "cuda"], ["--device", "cpu"]),
        (["check", "rank", "J.npy", "--rule", "gloub"], ["--rule", "golub"]),
        (["check", "rank", "J.npy", "--method", "lu"], ["--method", "svd"]),
        (["check", "model", "net.py:build", "--data", "d.npz"], ["'--loss'. Choose from: squared, "]),
        (["check", "rank", "J.npy", "--tolerance", "-1"], ["--tolerance"]),
        (["check", "rank", "J.npy", "--tolerance", "nan"], ["--tolerance"]),
        (["check", "rank", "J.npy", "--computed-in", "float8"], ["--computed-in", "float32"]),
        (["check", "--seed", "-1"], ["--seed", "range"]),
        (["check", "--json", "rank", "J.npy"], ["after the command", "alignver check rank ... --json"]),
        (["check", "rank", "J.npy", "--certificate", "J.npy"], ["--certificate", "a file"]),
        (["verify", "nowhere"], ["nowhere"]),
        (["verify", "nowhere", "--input", "J"], ["NAME=FILE"]),
        (["verify", "nowhere", "--input", "J=a.npy", "--input", "J=b.npy"], ["twice"]),
    ],
)
def test_wrong_usage(here, arguments, words):
    run = here(*arguments)
    assert (run.code, run.out) == (2, "")
    assert "Traceback" not in run.err
    for word in words:
        assert word in run.err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "which is not installed: pip install 'alignver[",
        ),
        (OSError("libtorch_cpu.so: cannot open shared object file"), "libtorch_cpu.so: cannot open"),
        (ModuleNotFoundError("No module named 'filelock'", name="filelock"), "pip install --force-reinstall torch"),
    ],
)
def test_torch_that_is_missing_or_broken(here, monkeypatch, error, words):
    def broken(name):
        raise error

    monkeypatch.setattr(loading.importlib, "import_module", broken)
    run = here("check", "alignment", "net.py:build", "--data", "both.npz", "--loss", "mse")
    assert (run.code, run.out) == (2, "")
    assert words in run.err


def test_no_command_shows_help_and_is_no_verdict(alignver):
    run = alignver()
    assert (run.code, run.out) == (2, "")
    assert "Usage" in run.err


def test_version(alignver):
    from alignver import __version__

    run = alignver("--version")
    assert (run.code, run.out, run.err) == (0, f"alignver {__version__}\n", "")


def test_a_large_file_is_mapped_not_read(tmp_path, monkeypatch):
    np.save(tmp_path / "A.npy", np.eye(3))
    assert not isinstance(loading.read_matrix(str(tmp_path / "A.npy"), "A"), np.memmap)
    monkeypatch.setattr(loading, "MAPPED_FROM", 100)
    array = loading.read_matrix(str(tmp_path / "A.npy"), "A")
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable


@pytest.mark.parametrize(
    "text", ["1,2\n3,4\n", "1;2\n3;4", "1\t2\n3\t4\n", "1 2\n3 4\n", "\ufeff1, 2\n3, 4\n", "# a b\n1 2\n\n3 4 # end\n"]
)
def test_tables_as_people_write_them(tmp_path, text):
    file = tmp_path / "A.csv"
    file.write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(loading.read_matrix(str(file), "A"), [[1.0, 2.0], [3.0, 4.0]])


def test_a_text_file_is_a_vector_only_where_a_vector_is_asked_for(tmp_path):
    for text in ("1\n2\n3\n", "1 2 3\n"):
        (tmp_path / "v.txt").write_text(text)
        assert loading.read_vector(str(tmp_path / "v.txt"), "y").shape == (3,)
        assert loading.read_matrix(str(tmp_path / "v.txt"), "A").ndim == 2


def test_big_endian_and_fortran_order_are_read_as_they_are(tmp_path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3)).astype(">f8")
    np.save(tmp_path / "A.npy", array)
    np.testing.assert_array_equal(loading.read_matrix(str(tmp_path / "A.npy"), "A"), array)


def test_blame_leaves_other_arguments_alone():
    with pytest.raises(InvalidInput, match=r"^Z: got a; needs b$"), loading.rename_argument({"J": "J.npy"}):
        raise InvalidInput("Z", "a", "b")


def test_files_of_other_programs_are_refused_with_a_remedy_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    A = np.arange(12.0).reshape(4, 3)
    scipy.sparse.save_npz("sparse.npz", scipy.sparse.csr_matrix(A))
    scipy.io.mmwrite("m.mtx", scipy.sparse.coo_matrix(A))
    scipy.io.savemat("m.mat", {"A": A})
    scipy.io.savemat("old.mat", {"A": A}, format="4")
    for name, words, array in (
        ("sparse.npz", r"scipy\.sparse\.load_npz", lambda: scipy.sparse.load_npz("sparse.npz").toarray()),
        ("m.mtx", r"scipy\.io\.mmread", lambda: scipy.io.mmread("m.mtx").toarray()),
        ("m.mat", r"scipy\.io\.loadmat", lambda: scipy.io.loadmat("m.mat")["A"]),
        ("old.mat", r"scipy\.io\.loadmat", lambda: scipy.io.loadmat("old.mat")["A"]),
    ):
        with pytest.raises(InvalidInput, match=words):
            loading.read_matrix(name, "A")
        np.save("A.npy", array())
        assert np.array_equal(loading.read_matrix("A.npy", "A"), A)


def test_a_name_in_an_archive_may_contain_colons(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    A = np.arange(12.0).reshape(4, 3)
    np.savez("tf.npz", **{"dense/kernel:0": A, "dense/bias:0": A[0]})
    with pytest.raises(InvalidInput, match=r"needs one of them: tf\.npz:dense/kernel:0"):
        loading.read_matrix("tf.npz", "A")
    assert np.array_equal(loading.read_matrix("tf.npz:dense/kernel:0", "A"), A)


@pytest.mark.parametrize("cell", ["9007199254740993", "-9007199254740993", "1152921504606846977"])
def test_integers_that_float64_does_not_hold_are_refused_in_text(tmp_path, cell):
    file = tmp_path / "A.csv"
    file.write_text(f"1,2\n3,{cell}\n")
    with pytest.raises(InvalidInput, match=f"got the integer {cell}; needs integers of at most"):
        loading.read_matrix(str(file), "A")
    file.write_text("1,2\n3,9007199254740992\n4,1e300\n")
    assert loading.read_matrix(str(file), "A")[2, 1] == 1e300


@pytest.mark.parametrize("cell", ["0.1234567890123456789", "1e-400", "1.00000000000000000001"])
def test_decimals_that_float64_does_not_hold_are_named(tmp_path, capsys, cell):
    file = tmp_path / "A.csv"
    file.write_text(f"1,{cell}\n3,0.1\n")
    matrix = loading.read_matrix(str(file), "A")
    assert f"numbers are rounded to float64, {cell} to {float(cell)!r}" in capsys.readouterr().err
    np.savetxt(file, matrix, delimiter=",")  # 19 digits, those of the floats
    assert np.array_equal(loading.read_matrix(str(file), "A"), matrix)
    assert capsys.readouterr().err == ""


def test_a_file_of_torch_is_read_by_the_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(torch.arange(6.0).reshape(2, 3), "A.pt")
    for read in (lambda: loading.read_matrix("A.pt", "A"), lambda: loading.read_npz("A.pt", "--data", ("X",))):
        with pytest.raises(InvalidInput, match=r"a file of torch\.save; needs .*weights_only=True"):
            read()
    np.save("A.npy", torch.load("A.pt", weights_only=True).numpy())
    assert loading.read_matrix("A.npy", "A").shape == (2, 3)


@pytest.mark.parametrize("convert", ["csr", "csc", "coo", "bsr", "dia"])
def test_the_numbers_of_a_sparse_matrix_are_not_its_rows(tmp_path, capsys, convert):
    file = str(tmp_path / "sparse.npz")
    scipy.sparse.save_npz(file, scipy.sparse.random(6, 9, 0.5, random_state=0).asformat(convert))
    for command in (("check", "data", file), ("check", "rank", f"{file}:data")):
        with pytest.raises(SystemExit) as end:
            main.run(list(command))
        assert end.value.code == 2
        assert "a sparse matrix of SciPy; needs" in capsys.readouterr().err


def test_a_table_of_pandas_with_its_index(tmp_path):
    file = tmp_path / "A.csv"
    for head in (",0,1", ",a,b"):
        file.write_text(f"{head}\n0,1.5,2.5\n1,3.5,4.75\n")
        with pytest.raises(InvalidInput, match=r"DataFrame\.to_csv\(file, header=False, index=False\)"):
            loading.read_matrix(str(file), "A")


def test_torch_files_of_the_old_format_have_a_remedy_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(torch.arange(6.0).reshape(2, 3), "A.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InvalidInput, match=r"never opened since it can run code; needs .*weights_only=True"):
        loading.read_matrix("A.pth", "A")
    np.save("A.npy", torch.load("A.pth", weights_only=True).numpy(force=True))
    assert loading.read_matrix("A.npy", "A").shape == (2, 3)
