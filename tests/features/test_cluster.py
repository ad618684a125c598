"""Blocks and tiles on a Dask cluster: bitwise equal certificates, killed or unfit workers, folders that differ."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import time

import numpy as np
import pytest

from alignver.checks import exploration_report
from alignver.checks.exploration import check_safe_exploration
from alignver.errors import InvalidInput, MissingDependency
from alignver.features import cholesky, cluster
from alignver.features.block_prover import BlockProver
from alignver.features.cholesky import prove_definite
from alignver.features.cluster import Cluster, connected
from alignver.features.products import scaled_gram
from alignver.features.tiles import FolderStore
from alignver.progress import listening
from alignver.results import Verdict
from tests.features.features import features

distributed = pytest.importorskip("distributed")


class Pair:
    """Two worker processes of one thread each."""

    def __init__(self, folder):
        self.folder, self.open, self.client = folder, contextlib.ExitStack(), None

    def start(self):
        self.open.close()
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", local_directory=self.folder
        )
        self.open.enter_context(cluster)
        self.client = self.open.enter_context(distributed.Client(cluster, set_as_default=False))

    def alive(self, patience):
        deadline = time.monotonic() + patience
        while len(self.client.run(os.getpid, on_error="ignore")) < 2:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pair = Pair(tmp_path_factory.mktemp("dask"))
    pair.start()
    with pair.open:
        yield pair


@pytest.fixture
def client(pair):
    """Return a client of two live workers: nannies replace killed ones, a new pair those that die while they start."""
    if not pair.alive(10):
        pair.start()
        assert pair.alive(60)
    return pair.client


@pytest.fixture
def small_tiles(monkeypatch):
    """Make many tile columns."""
    small = functools.partial(cholesky.prove_definite, tile=60)
    monkeypatch.setattr(exploration_report, "prove_definite", small)


class Killer:
    """Listens to the progress, and kills one worker after each step of ``label`` in ``steps``.

    It kills the older worker: a nanny does not replace a worker that dies while it starts.
    """

    def __init__(self, client, label, steps):
        self.client, self.label, self.steps = client, label, steps
        self.done, self.killed = 0, []

    def start(self, label, total):
        return label

    def advance(self, handle):
        if handle != self.label:
            return
        self.done += 1
        if self.done in self.steps:
            deadline = time.monotonic() + 60
            # Never the last worker: a nanny does not replace a worker that dies while it starts.
            while len(pids := set(self.client.run(os.getpid, on_error="ignore").values()) - set(self.killed)) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            self.killed.append(max(pids))
            os.kill(self.killed[-1], signal.SIGKILL)

    def finish(self, handle):
        pass


@pytest.mark.parametrize("stored", ["float64", "float32"])
def test_staircase_of_an_array_is_the_same(client, stored):
    Z = features(300, 21).astype(stored)
    here, there = check_safe_exploration(Z), check_safe_exploration(Z, client=client)
    assert there.verdict is Verdict.HOLDS
    assert there.certificate.seal == here.certificate.seal
    bare = check_safe_exploration(Z[:, :-1], add_constant=True, width=16, client=client)
    assert bare.certificate.seal == check_safe_exploration(Z[:, :-1], add_constant=True, width=16).certificate.seal


def test_staircase_of_a_file_and_of_blocks_is_the_same(client, tmp_path):
    Z = features(300, 21).astype(np.float32)
    np.save(tmp_path / "Z.npy", Z)
    here = check_safe_exploration(Z)
    mapped = np.load(tmp_path / "Z.npy", mmap_mode="r")
    assert check_safe_exploration(mapped, client=client).certificate.seal == here.certificate.seal
    blocks = (Z[k : k + 50] for k in range(0, 300, 50))
    assert check_safe_exploration(blocks, client=client).certificate.seal == here.certificate.seal


def test_shifted_boundaries_are_the_same(client, monkeypatch):
    """Blocks that fail are shortened in this process; the rest is planned again, and tasks of the old plan end."""
    # Six lines of five points: a block may hold three of them in a row.
    rng = np.random.default_rng(3)
    starts, steps = rng.standard_normal((6, 5)), rng.standard_normal((6, 5))
    Z = np.concatenate([start + np.outer(np.arange(5.0), step) for start, step in zip(starts, steps)])
    Z = np.column_stack([Z, np.ones(30)])
    here = [check_safe_exploration(Z, width=width) for width in (9, 15)]
    shortened = []
    shorter = BlockProver._shorter
    monkeypatch.setattr(BlockProver, "_shorter", lambda self, *args: shortened.append(args) or shorter(self, *args))
    for width, expected in zip((9, 15), here):
        there = check_safe_exploration(Z, width=width, client=client)
        assert (there.verdict, there.reason) == (expected.verdict, expected.reason)
        if expected.certificate is not None:
            assert there.certificate.seal == expected.certificate.seal
    assert shortened


def test_killed_workers_lose_no_block(client):
    Z = features(2000, 41)
    here = check_safe_exploration(Z)
    killer = Killer(client, "blocks", (3, 20))
    with listening(killer):
        there = check_safe_exploration(Z, client=client)
    assert len(killer.killed) == 2
    assert there.certificate.seal == here.certificate.seal


def test_killed_workers_lose_no_tile(client, tmp_path):
    """The factor, in columns of three pieces, is bitwise equal too."""
    Z, q = features(2400, 61), np.random.default_rng(0).standard_normal((61, 80))
    gram = scaled_gram(Z, q)
    here = prove_definite(gram, tile=300, folder=tmp_path / "here")
    killer = Killer(client, "Cholesky", (2, 5))
    with listening(killer):
        there = prove_definite(gram, tile=300, folder=tmp_path / "there", cluster=Cluster(client))
    assert len(killer.killed) == 2
    assert here.proved
    assert there == here
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert len(names) == 9
    for name in names:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_continues_from_finished_columns(client, small_tiles, tmp_path):
    """A run that is interrupted on the cluster continues in this process, and vice versa."""

    class Tired(Exception):
        pass

    class Stop(Killer):
        def advance(self, handle):
            self.done += handle == "Cholesky"
            if self.done == 3:
                raise Tired

    Z = features(300, 21)
    expected = check_safe_exploration(Z, method="gram").certificate.seal
    for k, (first, second) in enumerate([(client, None), (None, client)]):
        folder = tmp_path / str(k)
        with listening(Stop(client, "", ())), pytest.raises(Tired):
            check_safe_exploration(Z, method="gram", folder=folder, client=first)
        stamps = [(folder / f"column_0000{i}.npy").stat().st_mtime_ns for i in range(3)]
        assert not (folder / "column_00003.npy").exists()
        done = check_safe_exploration(Z, method="gram", folder=folder, client=second)
        assert done.certificate.seal == expected
        assert stamps == [(folder / f"column_0000{i}.npy").stat().st_mtime_ns for i in range(3)]


def test_indefinite_matrix_breaks_at_the_same_row(client, small_tiles, tmp_path):
    Z = features(300, 21)
    q = np.random.default_rng(0).standard_normal((21, 20))
    q[:, 10:] = q[:, :10]
    here = check_safe_exploration(Z, q=q, method="gram")
    there = check_safe_exploration(Z, q=q, method="gram", folder=tmp_path, client=client)
    assert here.verdict is there.verdict is Verdict.UNDECIDED
    assert there.reason == here.reason
    assert "breaks Cholesky at row 2" in here.reason


def test_folder_that_workers_do_not_share(client, tmp_path, monkeypatch):
    """/proc/self/cwd is another folder in each process."""
    Z = features(60, 9)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="folder: got a client without a folder"):
        check_safe_exploration(Z, method="gram", client=client)
    with pytest.raises(InvalidInput, match=r"folder: got /proc/self/cwd/tiles, which a worker on .* sees without A0"):
        check_safe_exploration(Z, method="gram", folder="/proc/self/cwd/tiles", client=client)
    np.save("Z.npy", Z)
    with pytest.raises(InvalidInput, match=r"Z: got /proc/self/cwd/Z.npy, which a worker on .* cannot read"):
        check_safe_exploration(np.load("/proc/self/cwd/Z.npy", mmap_mode="r"), client=client)


def job(folder, store, gram):
    return cluster.Job(str(folder), gram.digest(), ("A0", "B0"), store.hashes, 1e-9, 16)


class Mixed:
    """A client that computes factors again, on another processor, after this process has received them."""

    status, asynchronous = "running", False

    class Future:
        def __init__(self, value, again=None):
            self.value, self.again = value, value if again is None else again

        def result(self, timeout=None):
            return self.value

    def submit(self, work, *arguments, pure):
        value = work(*(given.again if isinstance(given, self.Future) else given for given in arguments))
        if work is cluster.factor_tile and not isinstance(value, int):
            return self.Future(value, np.nextafter(value, np.inf, where=value != 0, out=np.zeros_like(value)))
        return self.Future(value)

    def nthreads(self):
        return {"here": 2}

    def cancel(self, futures):
        pass


def test_one_column_has_one_factor(tmp_path):
    gram = scaled_gram(features(2400, 61), np.random.default_rng(0).standard_normal((61, 80)))
    assert prove_definite(gram, tile=600, folder=tmp_path / "there", cluster=Cluster(Mixed())).proved
    prove_definite(gram, tile=600, folder=tmp_path / "here")
    for name in ("column_00000.npy", "column_00003.npy"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_workers_verify_the_hashes_of_files(tmp_path):
    Z, q = features(70, 9), np.random.default_rng(0).standard_normal((9, 16))
    gram = scaled_gram(Z, q)
    store = FolderStore(tmp_path, {})
    for name, array in gram.arrays.items():
        store.publish(f"{name}.npy", array)
    assert cholesky.factor_tiles(gram, 1e-9, 16, store) is None
    good = job(tmp_path, store, gram)
    piece = [slice(64, 70)]
    early = cluster.Job(good.folder, good.digest, good.names, good.hashes[:4], 1e-9, 16)
    np.testing.assert_array_equal(cluster.factor_tile(cluster.reduce_rows(early, piece)), np.tril(store[4]))
    content = bytearray((tmp_path / "column_00002.npy").read_bytes())
    content[-3] ^= 1
    (tmp_path / "column_00002.npy").write_bytes(content)
    cluster._folders.clear()
    with pytest.raises(InvalidInput, match="with another column_00002"):
        cluster.reduce_rows(early, piece)
    store.publish("B0.npy", 2 * gram.arrays["B0"])
    cluster._folders.clear()
    with pytest.raises(InvalidInput, match="with another matrix"):
        cluster.reduce_rows(early, piece)
    cluster._folders.clear()


def test_another_file_at_the_same_path(tmp_path):
    from alignver.features.rows import digest_rows, open_rows

    Z = features(20, 5)
    np.save(tmp_path / "Z.npy", Z)
    rows = open_rows(np.load(tmp_path / "Z.npy", mmap_mode="r"))
    sent = cluster.FileRows(rows.location, digest_rows(rows)["sha256"], np.array([3, 7]))
    np.testing.assert_array_equal(sent.load(), Z[[3, 7]])
    Z[3, 0] += 1.0
    np.save(tmp_path / "other.npy", Z)
    os.replace(tmp_path / "other.npy", tmp_path / "Z.npy")
    with pytest.raises(InvalidInput, match="sees with other content"):
        sent.load()
    with (tmp_path / "Z.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(InvalidInput, match="cannot read"):
        sent.load()
    rows.close()


def test_other_version_is_refused():
    with pytest.raises(InvalidInput, match=r"workers with alignver 0\.0\.0"):
        cluster.prove_rows(cluster.SentRows(np.eye(3), False), 0, 3, 0.0, "0.0.0")


def round_up(direction):
    """Set the rounding mode of the thread that runs tasks."""
    ctypes.CDLL(None).fesetround(direction)


def test_workers_that_do_not_round_to_nearest(client, tmp_path):
    Z = features(60, 9)
    upward, nearest = 0x800, 0
    workers = list(client.nthreads())
    try:
        for worker in workers:
            client.submit(round_up, upward, pure=False, workers=[worker]).result()
        for options in ({}, {"method": "gram", "folder": tmp_path}):
            with pytest.raises(InvalidInput, match="does not round to nearest"):
                check_safe_exploration(Z, client=client, **options)
    finally:
        for worker in workers:
            client.submit(round_up, nearest, pure=False, workers=[worker]).result()
    assert check_safe_exploration(Z, client=client).verdict is Verdict.HOLDS


def test_invalid_clients():
    with pytest.raises(InvalidInput, match="client: got a str"):
        check_safe_exploration(features(20, 5), client="tcp://127.0.0.1:1")
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster:
        client = distributed.Client(cluster, set_as_default=False)
        with client, pytest.raises(InvalidInput, match="without workers"):
            Cluster(client)
        with pytest.raises(InvalidInput, match="a client that is closed"):
            check_safe_exploration(features(20, 5), client=client)


def test_client_that_closes_during_the_check():
    class Closing(Killer):
        def advance(self, handle):
            self.done += handle == "blocks"
            if self.done == 5:
                self.client.close()

    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
        listening(Closing(client, "", ())),
        pytest.raises(InvalidInput, match="client: got a cluster that fails"),
    ):
        check_safe_exploration(features(600, 21), client=client)


def test_connecting(client, monkeypatch):
    with connected(client.scheduler.address) as connection:
        assert len(connection.nthreads()) == 2
    worker = next(iter(client.nthreads()))
    with pytest.raises(InvalidInput, match="a Worker"), connected(worker):
        pass
    for address, why in (
        ("tcp://127.0.0.1:1", "Timed out|no answer within"),
        ("gopher://host:1", "unknown address scheme"),
    ):
        refused = pytest.raises(InvalidInput, match=rf"scheduler: got {address} \(({why})")
        with refused, connected(address, timeout=0.3):
            pass
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(MissingDependency, match=r"alignver\[distributed\]"), connected("tcp://127.0.0.1:1"):
        pass
