"""Every built-in function that a policy may call comes to the same value on both engines."""

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.rego.builtins import ALLOWED
from tests.house import tool

EXPRESSIONS = Path(__file__).parents[1] / "cases" / "builtins.yaml"
NAMES = 'n := 7.5\n\nl := [3, 1, 2]\n\ns := "Größe a-b"\n\no := {"a": 1, "b": {"c": [1, 2]}}\n'


def expressions() -> list[tuple[str, str]]:
    """(expression, what is said of it: `same`, `error` or `differs`)"""
    found: list[tuple[str, str]] = []
    for entry in yaml.safe_load(EXPRESSIONS.read_text()):
        ((said, expression),) = entry.items() if isinstance(entry, dict) else [("same", entry)]
        found.append((expression, said))
    return found


def test_every_allowed_function_is_compared() -> None:
    text = "\n".join(expression for expression, _ in expressions())
    called = set(re.findall(r"[a-z_][a-z_0-9.]*(?=\()", text))

    assert set() == set(ALLOWED) - called


@pytest.mark.needs_regorus
@pytest.mark.needs_opa
async def test_both_engines_come_to_the_same_values(tmp_path: Path) -> None:
    opa, embedded = await asyncio.gather(
        asyncio.to_thread(by_opa, tmp_path), asyncio.to_thread(by_regorus)
    )
    differing = {
        expression: (opa[number], embedded[number])
        for number, (expression, _) in enumerate(expressions())
        if opa[number] != embedded[number]
    }
    pinned = [expression for expression, said in expressions() if said == "differs"]
    failing = [said == "error" for _, said in expressions()]

    assert pinned == list(differing), differing
    assert failing == [answer == "error" for answer in opa]


def module(number: int, expression: str) -> str:
    """`came` is empty where the expression is undefined."""
    rules = f'value := {{"is": {expression}}}\n\ncame := [v | v := value]\n'
    return f"package case{number}\n\n{NAMES}\n{rules}"


def by_regorus() -> list[Any]:
    import regorus  # noqa: PLC0415  # an optional wheel

    found: list[Any] = []
    for number, (expression, _) in enumerate(expressions()):
        engine = regorus.Engine()
        try:
            engine.add_policy("case.rego", module(number, expression))
            engine.set_input_json("{}")
            found.append(json.loads(engine.eval_rule_as_json(f"data.case{number}.came")))
        except (RuntimeError, ValueError):
            found.append("error")
    return found


def by_opa(directory: Path) -> list[Any]:
    """One run for those that succeed; those that fail would fail it, and get their own."""
    binary = tool("opa")
    assert binary is not None
    queries = []
    for number, (expression, said) in enumerate(expressions()):
        (directory / f"case{number}.rego").write_text(module(number, expression))
        if said != "error":
            queries.append(f'"{number}": data.case{number}.came')
    base = [
        str(binary),
        "eval",
        "--strict-builtin-errors",
        "--format=json",
        "--data",
        str(directory),
    ]
    done = subprocess.run(
        [*base, f"{{{', '.join(queries)}}}"], capture_output=True, check=False, timeout=60
    )
    document = json.loads(done.stdout)
    assert "errors" not in document, document["errors"]
    values = document["result"][0]["expressions"][0]["value"]
    return [
        values[str(number)] if said != "error" else _failure(base, number)
        for number, (_, said) in enumerate(expressions())
    ]


def _failure(base: list[str], number: int) -> Any:
    done = subprocess.run(
        [*base, f"data.case{number}.came"], capture_output=True, check=False, timeout=60
    )
    return "error" if done.returncode != 0 else json.loads(done.stdout)
