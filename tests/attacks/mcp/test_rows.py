"""The abuse list (rows.yaml) is whole, and each test that it names exists."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

TESTS = Path(__file__).resolve().parents[2]
ROWS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text())


@cache
def functions(path: str) -> frozenset[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse((TESTS / path).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def test_each_row_is_shown_or_says_what_it_waits_for() -> None:
    assert [f"A{n}" for n in range(1, 23)] == list(ROWS)
    assert [] == [row for row, told in ROWS.items() if ("shown_by" in told) == ("open" in told)]


@pytest.mark.parametrize("row", [row for row, told in ROWS.items() if "shown_by" in told])
def test_what_a_row_names_exists(row: str) -> None:
    named = [one.partition("::") for one in ROWS[row]["shown_by"]]

    assert named
    assert [] == [f"{path}::{name}" for path, _, name in named if name not in functions(path)]
