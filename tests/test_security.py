"""Each line of the threat model in SECURITY.md has tests; those that belong nowhere else are here."""

from __future__ import annotations

import ast
import getpass
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import alignver as av
from alignver.errors import InvalidInput

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "alignver").rglob("*.py"))
NET = """
from pathlib import Path
import torch
Path({marker!r}).write_text("this code was run")
def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4), torch.nn.Tanh(),
                               torch.nn.Linear(4, 1))
"""


def rows():
    page = (ROOT / "SECURITY.md").read_text()
    table = [row.strip("|").split("|") for row in page.splitlines() if row.startswith("| ")][1:]
    return {cells[0].strip(): re.findall(r"`(tests/\S+\.py)::(\w+)`", cells[2]) for cells in table}


def test_every_line_of_the_threat_model_has_tests():
    lines = rows()
    assert len(lines) == 14
    for threat, tests in lines.items():
        assert tests, threat
        for file, name in tests:
            defined = {node.name for node in ast.parse((ROOT / file).read_text()).body if hasattr(node, "name")}
            assert name in defined, (threat, file, name)


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def files_that_call(*names):
    called = {(path.name, name) for path in SOURCES for name, _ in calls(path)}
    return {
        file for file, name in called if name in names or name.rpartition(".")[2] in {n for n in names if n[0] == "_"}
    }


def test_what_runs_code():
    """Code of others is run in two places; elsewhere modules are imported by names that stand in the source."""
    running = {"exec", "eval", "compile", "runpy.run_path", "runpy.run_module", "os.system", "os.popen"}
    assert {path.name for path in SOURCES for name, _ in calls(path) if name in running} == {"saved_network.py"}
    executing = {path.name for path in SOURCES for name, _ in calls(path) if name.endswith(".exec_module")}
    assert executing == {"model_io.py"}
    assert not any("subprocess" in path.read_text() for path in SOURCES)


def test_no_pickle_is_opened(tmp_path):
    loading = {"torch.load", "pickle.load", "pickle.loads", "joblib.load", "np.load", "npy.read_array"}
    for path in SOURCES:
        for name, node in calls(path):
            if name in ("np.load", "npy.read_array"):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("allow_pickle") == "False", path
            else:
                assert name not in loading, path
    assert {path.name for path in SOURCES if re.search(r"^import pickle", path.read_text(), re.M)} == {"image_sets.py"}

    marker = tmp_path / "marker"

    class Hostile:
        def __reduce__(self):
            return Path(marker).touch, ()

    np.save(tmp_path / "A.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    done = alignver(tmp_path, "check", "rank", "A.npy")
    assert (done.returncode, done.stdout) == (2, "")
    assert "never opened" in done.stderr
    assert not marker.exists()


def alignver(place, *arguments, timeout=None):
    command = [sys.executable, "-m", "alignver", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pytest.importorskip("torch")
    place = tmp_path_factory.mktemp("trained")
    (place / "net.py").write_text(NET.format(marker=str(place / "marker")))
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 2))
    np.savez(place / "train.npz", X=X, Y=X[:, :1])
    options = ["--data", "train.npz", "--loss", "squared", "--epochs", "3", "--out", "run"]
    done = alignver(place, "train", "net.py:build", *options)
    assert (place / "run" / "model.safetensors").exists(), done.stderr
    return place


def test_verify_and_report_run_no_code(trained):
    marker = trained / "marker"
    assert marker.read_text() == "this code was run"  # by the training
    marker.unlink()
    assert alignver(trained, "report", "run").returncode == 0
    assert alignver(trained, "verify", "run").returncode == 0
    assert not marker.exists()
    assert alignver(trained, "predict", "run", "--data", "train.npz").returncode == 0
    assert marker.exists()


def test_code_inside_of_a_run_folder(trained, monkeypatch):
    """With the digest that fits: whoever made the folder knows it."""
    marker, evil, config = trained / "hacked", trained / "run" / "evil.py", trained / "run" / "config.json"
    evil.write_text(NET.format(marker=str(marker)))
    document = json.loads(config.read_text())
    document["settings"]["code"]["sha256"] = hashlib.sha256(evil.read_bytes()).hexdigest()
    original = config.read_text()
    try:
        monkeypatch.chdir(trained)
        monkeypatch.syspath_prepend("")
        (trained / "run" / "__init__.py").write_text(evil.read_text())
        for model in (
            "run/evil.py:build",
            f"{evil}:build",
            "run.evil:build",
            "run:build",
            "./run/../run/evil.py:build",
        ):
            document["sources"]["model"] = model
            config.write_text(json.dumps(document))
            with pytest.raises(InvalidInput, match="code inside the run folder"):
                av.load("run")
            assert not marker.exists(), model
        refused = alignver(trained, "train", "--resume", "run", "--data", "train.npz")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert not marker.exists()
        assert "inside the run folder" in refused.stderr
    finally:
        config.write_text(original)


def test_nothing_is_unpacked_to_disk():
    for path in SOURCES:
        assert not any(
            name.rpartition(".")[2] in ("extract", "extractall", "unpack_archive") for name, _ in calls(path)
        )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "A.npy")
    done = alignver(tmp_path, "check", "rank", "A.npy", timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pipe" in done.stderr


NETWORK = """
import sys
def refuse(event, arguments):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "urllib", "http.client", "ftplib", "smtplib")):
        raise RuntimeError(f"the network was used: {event} {arguments}")
sys.addaudithook(refuse)
import numpy as np, torch, alignver as av
net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
av.check_model(net, torch.randn(4, 2), torch.randn(4), loss="squared", max_seconds=5.0)
av.check_rank(np.eye(3), rank=3)
av.doctor()
"""


def test_no_network():
    modules = re.compile(
        r"^\s*(import|from) (urllib\.request|http|requests|ftplib|smtplib|aiohttp|huggingface_hub)\b", re.M
    )
    assert not [path for path in SOURCES if modules.search(path.read_text())]
    done = subprocess.run([sys.executable, "-c", NETWORK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_report_does_not_identify_the_machine(tmp_path):
    np.save(tmp_path / "A.npy", np.eye(3))
    done = alignver(tmp_path, "check", "rank", "A.npy", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["provenance"]["inputs"]["A"]["file"] == "A.npy"
    for identity in (str(tmp_path), tmp_path.name, str(Path.home()), os.uname().nodename, str(ROOT)):
        assert len(identity) < 4 or identity not in done.stdout, identity
    assert f'"{getpass.getuser()}"' not in done.stdout
