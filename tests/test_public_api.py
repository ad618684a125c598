"""The public calls and the command line keep their names: ``alignver.__all__``, signatures, commands and options.

``public_api.json`` holds what has been released. A new name may be added to it; one that is there stays.
Write it again with ``python -m tests.test_public_api``.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

import alignver as av
from alignver.cli import main

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


def missing(released: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    """Return what was released and is gone, or has moved: positional parameters keep their order."""
    gone = [name for name in released if name not in now]
    for name in released.keys() & now.keys():
        gone += [f"{name}: {entry}" for entry in released[name] if entry not in now[name]]
        before = [entry for entry in released[name] if entry.startswith("positional")]
        if before != [entry for entry in now[name] if entry.startswith("positional")][: len(before)]:
            gone.append(f"{name}: the order of {before}")
    return gone


@pytest.mark.parametrize("kind", [calls, commands])
def test_what_was_released_stays(kind):
    assert missing(json.loads(RELEASED.read_text())[kind.__name__], kind()) == []


def test_a_lost_parameter_is_noticed():
    before = {"f": ["positional_or_keyword x", "positional_or_keyword y =", "keyword_only tol ="]}
    after = {"f": ["positional_or_keyword y =", "positional_or_keyword x"]}
    assert missing(before, {}) == ["f"]
    assert missing(before, before) == []
    assert missing(before, after) == [
        "f: keyword_only tol =",
        "f: the order of ['positional_or_keyword x', 'positional_or_keyword y =']",
    ]


if __name__ == "__main__":
    RELEASED.write_text(json.dumps({"calls": calls(), "commands": commands()}, indent=1) + "\n")
