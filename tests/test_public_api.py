"""The interface stays: names, signatures, defaults, fields of results, codes, commands, options and exit codes.

``public_api.json`` holds what has been released. A new entry may be added to it; one that is there stays, or is
deprecated for a minor version first (:mod:`alignver.deprecation`). ``python -m tests.test_public_api`` writes it.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

import alignver as av
from alignver import codes, deprecation
from alignver.cli import main
from alignver.cli.exits import Exit
from alignver.errors import DeprecatedName, InvalidInput

ROOT = Path(__file__).parents[1]
RELEASED = Path(__file__).with_name("public_api.json")


def parameters(value: Any) -> list[str]:
    """Return the parameters of a function, or of a class's constructor: kind and name, with a default or without."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return []
    return [
        f"{parameter.kind.name.lower()} {parameter.name}" + ("" if parameter.default is parameter.empty else " =")
        for parameter in signature.parameters.values()
    ]


def calls() -> dict[str, list[str]]:
    """Return every public name with its parameters; methods of public classes are ``Class.method``."""
    described = {}
    for name in av.__all__:
        value = getattr(av, name)
        described[name] = parameters(value) if callable(value) else []
        if inspect.isclass(value):
            for method, function in inspect.getmembers(value, callable):
                if not method.startswith("_"):
                    described[f"{name}.{method}"] = parameters(function)
    return described


def defaults() -> dict[str, list[str]]:
    """Return the default values of the parameters of every public name: one that changes is another answer."""
    described = {}
    for name in av.__all__:
        value = getattr(av, name)
        if callable(value) and not (inspect.isclass(value) and issubclass(value, enum.Enum | BaseException)):
            given = inspect.signature(value).parameters.values()
            described[name] = [
                f"{parameter.name} = {parameter.default!r}"
                for parameter in given
                if parameter.default is not parameter.empty and " at 0x" not in repr(parameter.default)
            ]
    return described


def fields() -> dict[str, list[str]]:
    """Return the attributes of every public class: fields, properties and the members of enumerations."""
    described = {}
    for name in av.__all__:
        value = getattr(av, name)
        if inspect.isclass(value):
            declared = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
            members = [member.name for member in value] if issubclass(value, enum.Enum) else []
            properties = [key for key, item in inspect.getmembers(value) if isinstance(item, property)]
            public = {key for key in [*declared, *members, *properties] if not key.startswith("_")}
            described[name] = sorted(public)
    return described


def stable_codes() -> dict[str, list[str]]:
    """Return the codes of answers and refusals, and the exit codes of the command line."""
    kinds = {"answers": codes.answers(), "refusals": codes.refusals()}
    named = {name: sorted(code for kind in listed for code in kind.codes) for name, listed in kinds.items()}
    return {**named, "exits": [f"{code.name} = {code.value}" for code in Exit]}


def documented() -> dict[str, list[str]]:
    """Return the names below the top level that the reference documents, with their parameters."""
    described = {}
    text = (ROOT / "docs" / "api.md").read_text()
    for kind, name in re.findall(r"auto(function|class):: (alignver\.[\w.]+)", text):
        home, _, last = name.rpartition(".")
        if home != "alignver":
            described[name] = parameters(getattr(importlib.import_module(home), last)) if kind == "function" else []
    return described


def commands() -> dict[str, list[str]]:
    """Return every command with its arguments and options."""
    described = {}

    def walk(command: click.Command, path: str) -> None:
        described[path] = sorted(
            option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]
        )
        for name, below in getattr(command, "commands", {}).items():
            walk(below, f"{path} {name}")

    walk(typer.main.get_command(main.app), "alignver")
    return described


KINDS = (calls, defaults, fields, documented, stable_codes, commands)


def missing(released: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    """Return what was released and is gone, or has moved: positional parameters keep their order."""
    gone = [name for name in released if name not in now]
    for name in released.keys() & now.keys():
        gone += [f"{name}: {entry}" for entry in released[name] if entry not in now[name]]
        before = [entry for entry in released[name] if entry.startswith("positional")]
        if before != [entry for entry in now[name] if entry.startswith("positional")][: len(before)]:
            gone.append(f"{name}: the order of {before}")
    return gone


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_was_released_stays(kind: Callable[[], dict[str, list[str]]]):
    released = json.loads(RELEASED.read_text())[kind.__name__]
    assert sum(map(len, released.values())) > 20
    assert missing(released, kind()) == []


def test_a_lost_parameter_is_noticed():
    before = {"f": ["positional_or_keyword x", "positional_or_keyword y =", "keyword_only tol ="]}
    after = {"f": ["positional_or_keyword y =", "positional_or_keyword x"]}
    assert missing(before, {}) == ["f"]
    assert missing(before, before) == []
    assert missing(before, after) == [
        "f: keyword_only tol =",
        "f: the order of ['positional_or_keyword x', 'positional_or_keyword y =']",
    ]


def test_a_changed_default_and_a_lost_field_are_noticed():
    now = defaults()
    assert "rule = 'golub'" in now["check_rank"]
    changed = {**now, "check_rank": ["rule = 'press'"]}
    assert "check_rank: rule = 'golub'" in missing(now, changed)
    assert {"verdict", "rigor", "subject", "code", "certificate"} <= set(fields()["CheckResult"])
    assert "UNDECIDED = 3" in stable_codes()["exits"]


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def test_what_is_deprecated_goes_in_time():
    for old, new, gone in deprecation.PENDING:
        assert version(gone) > version(av.__version__), f"{old} was to go in {gone}: use {new}"


@pytest.fixture
def pending(monkeypatch) -> list[Any]:
    monkeypatch.setattr(deprecation, "PENDING", [])
    return deprecation.PENDING


def test_a_renamed_argument_works_with_a_warning(pending):
    @deprecation.renamed_argument("tol", "tolerance", gone="9.0")
    def check(value: float, *, tolerance: float = 1.0) -> float:
        return value * tolerance

    with pytest.warns(DeprecatedName, match=r"check\(tol=...\) .* 9.0: use tolerance=") as caught:
        assert check(2.0, tol=3.0) == 6.0
    assert caught[0].filename == __file__  # it points to the caller
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(2.0, tolerance=3.0) == check(2.0) * 3.0 == 6.0
    with pytest.raises(InvalidInput, match=r"tolerance: got tol with tolerance") as refused:
        check(2.0, tol=3.0, tolerance=3.0)
    assert refused.value.code == "conflicting-arguments"
    assert [gone for *_, gone in pending] == ["9.0"]


def test_a_moved_name_is_found_with_a_warning(pending):
    find = deprecation.moved("alignver.old", {"check": "alignver.check_rank"}, gone="9.0")
    with pytest.warns(DeprecationWarning, match="use alignver.check_rank"):
        assert find("check") is av.check_rank
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        find("other")
    assert pending == [("alignver.old.check", "alignver.check_rank", "9.0")]


def written() -> str:
    """Return what the file would contain now."""
    return json.dumps({kind.__name__: kind() for kind in KINDS}, indent=1)


if __name__ == "__main__":
    RELEASED.write_text(written() + "\n")
