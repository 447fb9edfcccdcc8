"""Holds the list of promises and the tests that show them to each other, in both directions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.promises import PROMISES, promise

TESTS = Path(__file__).resolve().parents[1]


def shown(source: str) -> Iterator[str]:
    """The names that `@promise("...")` carries in a file, read without importing it."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name("promise"), args=[ast.Constant(str(name))]):
                yield name


def all_shown() -> set[str]:
    return {name for file in TESTS.rglob("test_*.py") for name in shown(file.read_text())}


def test_every_promise_has_a_test() -> None:
    assert set() == set(PROMISES) - all_shown()


def test_every_test_shows_a_promise_that_was_made() -> None:
    assert set() == all_shown() - set(PROMISES)


def test_an_unknown_promise_is_refused_where_it_is_made() -> None:
    with pytest.raises(KeyError, match="no such promise"):
        promise("moon:" + "tomorrow")


def test_a_promise_is_found_on_functions_and_in_lists_of_marks() -> None:
    source = 'pytestmark = [promise("a:b")]\n@promise("c:d")\ndef test_x(): ...\n'

    assert {"a:b", "c:d"} == set(shown(source))
