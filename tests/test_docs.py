"""The documentation says what is there: every public name, every command and option, links that lead somewhere."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from torch import nn

import alignver
from alignver.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])
sys.path.insert(0, str(DOCS))

import command_line_tables  # noqa: E402 - it lives beside the pages that it makes
import performance_tables  # noqa: E402


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^(`{3,})(?!\{).*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_every_public_name_stands_in_the_reference():
    text = (DOCS / "api.md").read_text()
    listed = set(re.findall(r"alignver\.(\w+)$", text, re.MULTILINE))
    assert set(alignver.__all__) - {"__version__"} <= listed


def test_every_name_that_a_page_imports_stands_in_the_reference():
    text = (DOCS / "api.md").read_text()
    for page in PAGES:
        if page.name == "CONTRIBUTING.md":  # a check is made of what lies below the public names
            continue
        for home, names in re.findall(r"^from (alignver[\w.]*) import ([\w, ]+)$", page.read_text(), re.MULTILINE):
            for name in names.split(", "):
                last = name.partition(" as ")[0]
                places = f"{home}.{last}", f"alignver.{last}"  # or, of a module, what is in it
                assert any(re.search(rf":: {re.escape(place)}(\.\w+)?$", text, re.MULTILINE) for place in places), last


def test_every_listed_name_exists():
    import importlib

    for kind, name in re.findall(r"auto(\w+):: (alignver[\w.]+)", (DOCS / "api.md").read_text()):
        home, _, last = name.rpartition(".")
        assert kind == "module" or hasattr(importlib.import_module(home), last), name
        assert kind != "module" or importlib.import_module(name).__doc__, name


def test_every_command_and_option_stands_in_the_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(command_line_tables, "REFERENCE", tmp_path / "made" / "command_line.md")
    command_line_tables.write()
    text = command_line_tables.REFERENCE.read_text()
    described = dict(command_line_tables.commands())
    assert {"alignver", "alignver check", "alignver check membership", "alignver verify"} <= set(described)
    for path, command in described.items():
        section = text.split(f"### {path}\n", 1)[1].split("\n### ", 1)[0]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                for option in [*parameter.opts, *parameter.secondary_opts]:
                    assert re.search(rf"`{option}[` ]", section), f"{path} {option}"
            else:
                assert f"`{parameter.metavar or parameter.name.upper()}`" in section


def test_every_claim_and_method_of_certificates_is_explained():
    from alignver.kernel import data, exploration, matrices, optimality
    from alignver.kernel.certificate import CLAIMS
    from alignver.kernel.network import methods as graphs

    text = (DOCS / "certificate_format.md").read_text()
    assert all(f"`{claim}`" in text for claim in CLAIMS)
    rows = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| `")]
    words = [[re.findall(r"`([^`]+)`", column) for column in row] for row in rows]
    explained = {(claim, method) for methods, claims in words for method in methods for claim in claims}
    explained = {(claim, method) for claim, method in explained if claim in CLAIMS}
    modules = (data, exploration, matrices, optimality, graphs)
    assert {key for module in modules for key in module.METHODS} == explained
    for module in modules:
        source = Path(module.__file__).read_text()
        read = re.findall(r"(?:data|constants|ball|layer|own|entry)(?:\[|\.get\(|, )\"([\w ]+)\"", source)
        assert read
        assert all(re.search(rf"[`\"]{name}[`\"]", text) for name in read)


def examples() -> list[tuple[str, str]]:
    """Every command line of ours in a console block, with the page that it is on."""
    lines_of_pages = []
    for page in PAGES:
        for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            lines = [part for line in block.splitlines() if line.startswith("$ ") for part in line[2:].split("; ")]
            lines_of_pages += [
                (page.name, re.split(r" \|\|? ", line)[0]) for line in lines if line.startswith("alignver ")
            ]
    return lines_of_pages


def shown_by_help() -> list[tuple[str, str]]:
    """Every command line that a --help shows, with the command whose help it is."""
    lines = [
        (path, line.strip()) for path, command in command_line_tables.commands() for line in command.help.split("\n")
    ]
    return [(path, line) for path, line in lines if line.startswith("alignver ")]


@pytest.mark.parametrize(("page", "line"), sorted({*examples(), *shown_by_help()}))
def test_console_examples_are_accepted_by_the_parser(page, line):
    accepted_by_the_parser(line)


def accepted_by_the_parser(line):
    command, words = typer.main.get_command(main.app), shlex.split(line.split(" > ")[0], comments=True)[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    with contextlib.suppress(typer.Exit):  # --version
        command.make_context("alignver", words)  # raises on an unknown option, a missing or a superfluous argument


@pytest.fixture
def prepared(tmp_path, monkeypatch) -> Path:
    """Return a folder, the current one, with the files that the pages speak of."""
    from safetensors.torch import save_model

    rng = np.random.default_rng(0)
    np.save(tmp_path / "J.npy", rng.standard_normal((10, 30)))
    np.save(tmp_path / "y.npy", rng.standard_normal(10))
    np.save(tmp_path / "A.npy", rng.standard_normal((20, 25)))
    np.savez(tmp_path / "train.npz", X=rng.standard_normal((12, 256)), Y=rng.integers(0, 10, 12))
    save_model(
        nn.Sequential(nn.Linear(256, 16), nn.Softplus(), nn.Linear(16, 10)), str(tmp_path / "trained.safetensors")
    )
    (net,) = re.findall(r"^# net.py\n(.*?)^```", (DOCS / "tutorial_model.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "net.py").write_text(net)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", sorted({page for page, _ in examples()}))
def test_console_examples_run(page, prepared, capsys):
    """In the order of the page; what needs a GPU, a cluster or many minutes is left to the parser."""
    elsewhere = re.compile(
        r"--device cuda|tcp://|reproduce (?!--list)"
        r"|^alignver check$|^alignver (?:train|predict)|^alignver report (?!rank)"
    )
    for home, line in examples():
        plain = line.partition(" #")[0].strip()
        if home == page and not elsewhere.search(plain):
            told, _, file = plain.partition(" > ")
            with pytest.raises(SystemExit) as end:
                main.run(shlex.split(told)[1:])
            printed = capsys.readouterr()
            assert end.value.code == 0, f"{plain}: {printed}"
            if file:
                (prepared / file).write_text(printed.out)


def anchors(page: Path) -> set[str]:
    """Return the anchors that MyST gives the headings of a page: GitHub's rule."""
    anchors = set()
    text = page.read_text()
    for name in re.findall(r"```\{include\} (\S+)", text):
        made = DOCS / name
        text += made.read_text() if made.is_file() else ""
    for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchors.add(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return anchors


def links(page: Path) -> list[str]:
    return re.findall(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)", prose(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            assert re.fullmatch(r"https?://[\w.-]+\.[a-z]+(:\d+)?(/\S*)?|mailto:\S+@\S+", link), link
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_formulas_are_closed_and_no_line_of_one_looks_like_a_list(page):
    """A line that begins with + inside a formula would be an item of a list, and the formula plain text."""
    inside = False
    for line in re.sub(r"\$\$.*?\$\$", "", prose(page), flags=re.DOTALL).split("\n"):
        assert not (inside and re.match(r"\s*([-+*=#>|]|\d+[.)]|$)", line)), f"{page.name}: {line}"
        inside ^= len(re.findall(r"(?<!\\)\$", re.sub(r"`[^`]*`", "", line))) % 2 == 1
    assert not inside


def test_every_page_is_in_the_contents():
    contents = re.findall(r"^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text(), re.MULTILINE | re.DOTALL)
    listed = {line for block in contents for line in block.splitlines() if line and not line.startswith(":")}
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert pages == listed - {"gallery/index"}


BENCHMARKS = sorted((DOCS / "results" / "benchmarks").glob("*.json"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_says_what_it_was_run_with(path, tmp_path, monkeypatch):
    document = json.loads(path.read_text())
    assert document["benchmark"] == path.stem
    script = document["command"].split()[1]
    assert (ROOT / script).is_file()
    assert {"processor", "cores", "memory_gib"} <= set(document["machine"])
    assert {"alignver", "python", "numpy"} <= set(document["versions"])
    assert document["output"]
    # Every target is a line of the output, not a number from somewhere else.
    printed = [" ".join(line.split()) for line in document["output"]]
    for target in document["targets"]:
        assert any(" ".join(target["text"].split()) in line for line in printed)
    monkeypatch.setattr(performance_tables, "SECTIONS", tmp_path / "made" / "performance.md")
    performance_tables.write()
    assert f"## {path.stem}\n" in performance_tables.SECTIONS.read_text()


CARDS = sorted((DOCS / "results" / "gpu").glob("*.json"))


def test_runs_that_are_kept_of_a_card_are_of_one():
    for path in CARDS:
        document = json.loads(path.read_text())
        assert document["step"] == path.stem
        assert document["dry"] is False
        assert {"accelerator", "driver", "cuda", "processor"} <= set(document["machine"])
        assert {"alignver", "python", "torch"} <= set(document["versions"])
        assert re.match(r"\d{4}-\d\d-\d\dT", document["date"])


def test_pages_say_what_ran_on_a_card(tmp_path, monkeypatch):
    monkeypatch.setattr(performance_tables, "SECTIONS", tmp_path / "made" / "performance.md")
    monkeypatch.setattr(performance_tables, "CARDS", tmp_path)
    performance_tables.write()
    assert (tmp_path / "made" / "gpu.md").read_text().startswith("Nothing yet")
    of = {
        "accelerator": "a card",
        "accelerator_gib": 80,
        "driver": "1.2",
        "cuda": "13.0",
        "processor": "a CPU",
        "cores": 16,
    }
    computed = {"n = 60000": {"verdict": "HOLDS", "seconds": 12.3456}, "disagreements": [], "details": ["many"]}
    stored = {
        "step": "own",
        "status": "done",
        "date": "2026-11-26T00:00:00",
        "machine": of,
        "versions": {"torch": "2.11"},
    }
    (tmp_path / "own.json").write_text(json.dumps({**stored, "results": computed, "seconds": 20.0}))
    performance_tables.write()
    text = (tmp_path / "made" / "gpu.md").read_text()
    assert "**own**: done, 2026-11-26" in text
    assert "n = 60000: verdict HOLDS; seconds 12.35\ndisagreements: none\n```" in text
    assert "a card, 80 GiB, driver 1.2, CUDA 13.0" in text


def test_no_page_tells_of_a_machine():
    for page in [*PAGES, *BENCHMARKS, *CARDS]:
        assert not re.search(r"/(home|root|work|tmp)/", page.read_text()), page.name
