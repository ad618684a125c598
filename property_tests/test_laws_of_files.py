"""Whatever becomes of a file's bytes, a reader returns what is in it or refuses it by name: nothing else escapes."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignver.cli.input_files import names_in, read_matrix, read_npz, read_vector
from alignver.data import semeion
from alignver.errors import InvalidInput
from alignver.features.tiles import FolderStore

A = np.arange(12.0).reshape(3, 4)


def written(save, *arrays, **named):
    stream = io.BytesIO()
    save(stream, *arrays, **named)
    return stream.getvalue()


@st.composite
def damaged(draw, whole):
    """Bytes that are changed, cut off, put in, or nothing that was ever written."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(whole)
    for _ in range(draw(st.sampled_from([0, 1, 3, 30]))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    at = draw(st.integers(0, len(content)))
    content[at:at] = draw(st.binary(max_size=4))
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])


READERS = {
    "npy": (written(np.save, A), "a.npy", lambda path: read_matrix(path, "J")),
    "npz": (written(np.savez, a=A), "a.npz", lambda path: read_matrix(path, "J")),
    "compressed npz": (written(np.savez_compressed, a=A), "a.npz", lambda path: read_matrix(path, "J")),
    "named arrays": (written(np.savez, X=A, Y=A), "a.npz", lambda path: read_npz(path, "data", ("X", "Y"))),
    "names": (written(np.savez, X=A, Y=A), "a.npz", lambda path: names_in(path, "data")),
    "csv": (b"1,2,3\n4,5,6\n", "a.csv", lambda path: read_matrix(path, "J")),
    "vector": (b"1\n2\n3\n", "a.txt", lambda path: read_vector(path, "y")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_files_of_the_command_line(folder, kind, data):
    whole, name, read = READERS[kind]
    file = folder / name
    file.write_bytes(data.draw(damaged(whole)))
    with contextlib.suppress(InvalidInput), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of headers that it would read another way
        read(str(file))


IMAGES = written(np.savez, x=np.zeros((2, 16, 16), np.uint8), y=np.zeros(2, np.uint8))


@given(content=damaged(IMAGES))
def test_image_sets(folder, content):
    (folder / "semeion.npz").write_bytes(content)
    with contextlib.suppress(InvalidInput), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        semeion(folder)


@given(content=damaged(written(np.save, A)))
@example(content=b"")
@example(content=written(np.save, A).replace(b"'descr'", b"'d\xd8scr"))
def test_a_damaged_tile_and_what_comes_after_it_is_made_again(tmp_path_factory, content):
    place = tmp_path_factory.mktemp("tiles")
    store = FolderStore(place, {"order": 3})
    for column in (A, A[:2], A[:1]):
        store.append(column)
    whole = {path: path.read_bytes() for path in place.glob("column_*.npy")}
    middle = sorted(whole)[1]
    middle.write_bytes(content)
    again = FolderStore(place, {"order": 3})
    assert again.finished in ({1, 3} if content == whole[middle] else {1})
    np.testing.assert_array_equal(again[0], A)
