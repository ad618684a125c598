"""Exit codes, text and JSON of the checks on files."""

from __future__ import annotations

import pytest

from alignver.results import Report, Verdict


@pytest.mark.parametrize(
    ("arguments", "code", "verdict"),
    [
        (["membership", "J.npy", "y.npy"], 0, "HOLDS"),
        (["membership", "one.csv", "off.txt"], 1, "FAILS"),
        (["membership", "unclear.npy", "last.npy", "--no-certify"], 3, "UNDECIDED"),
    ],
)
def test_the_exit_code_says_the_verdict(alignver, arguments, code, verdict):
    text = alignver("check", *arguments)
    assert (text.code, text.err) == (code, "")
    assert verdict in text.out.splitlines()[0]
    assert "\x1b" not in text.out


def test_json_is_one_valid_document_and_nothing_else(alignver, files):
    run = alignver("check", "membership", "one.csv", "off.txt", "--json", "-v")
    document = run.document()
    assert run.code == 1
    assert document["verdict"] == "FAILS"
    assert Report.from_json(run.out).verdict is Verdict.FAILS
    provenance = document["provenance"]
    assert provenance["command"] == "check membership"
    assert provenance["inputs"]["J"]["shape"] == [3, 3]
    assert set(provenance["inputs"]) == {"J", "y"}
    assert str(files) not in run.out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "rank", "J.npy"], 0),
        (["check", "rank", "J.npy", "--rank", "3"], 1),
        (["check", "rank", "J.npy", "--rule", "press", "--method", "qr"], 0),
        (["check", "rank", "one.csv", "--tolerance", "1e4", "--rank", "0", "--no-certify"], 0),
        (["check", "membership", "both.npz:J", "both.npz:y", "--method", "lstsq"], 0),
        (["check", "membership", "one.csv", "on.txt", "--computed-in", "float32", "--residual-tolerance", "1e-3"], 0),
    ],
)
def test_options_reach_the_check(here, arguments, code):
    run = here(*arguments)
    assert (run.code, run.err) == (code, "")
    assert here(*arguments, "--json").document()["verdict"] == {0: "HOLDS", 1: "FAILS"}[code]


def test_quiet_leaves_the_verdict_line(here):
    run = here("check", "rank", "J.npy", "-q")
    assert len(run.out.splitlines()) == 1
    assert "HOLDS" in run.out


def test_verbose_adds_tables_and_provenance(here):
    run = here("check", "membership", "one.csv", "off.txt", "-v")
    for part in ("rank rule", "> golub", "julia", "method", "tolerance", "alignver ", "sha256"):
        assert part in run.out
    assert not any(line.endswith(" ") for line in run.out.splitlines())


def test_torch_backend_gives_the_same_verdict(here):
    pytest.importorskip("torch")
    run = here("check", "membership", "one.csv", "off.txt", "--backend", "torch", "--json")
    document = run.document()
    assert (run.code, document["verdict"]) == (1, "FAILS")
    assert "torch" in document["provenance"]["versions"]
    assert document["provenance"]["tf32"] is not None


def test_a_check_needs_no_torch(alignver, inject):
    blocked = inject(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    run = alignver("check", "membership", "J.npy", "y.npy", injected=blocked)
    assert (run.code, run.err) == (0, "")
    for arguments in (
        ["check"],
        ["check", "alignment", "net.py:build", "--data", "both.npz", "--loss", "squared"],
        ["check", "rank", "J.npy", "--backend", "torch"],
    ):
        run = alignver(*arguments, injected=blocked)
        assert run.code == 2
        assert run.out == ""
        assert "Traceback" not in run.err


def test_a_check_imports_no_torch(alignver, inject):
    watching = inject(
        "import atexit, sys\n"
        "def tell():\n"
        "    heavy = {'torch', 'matplotlib', 'cupy', 'sklearn'} & set(sys.modules)\n"
        "    print('loaded', sorted(heavy), file=sys.stderr)\n"
        "atexit.register(tell)\n"
    )
    assert alignver("check", "membership", "J.npy", "y.npy", injected=watching).err == "loaded []\n"


def test_help_imports_no_numpy(alignver, inject):
    watching = inject(
        "import atexit, sys\n"
        "atexit.register(lambda: print('loaded', sorted({'numpy', 'torch'} & set(sys.modules)), file=sys.stderr))\n"
    )
    run = alignver("--help", injected=watching)
    assert (run.code, run.err) == (0, "loaded []\n")
    assert "Examples" in run.out
