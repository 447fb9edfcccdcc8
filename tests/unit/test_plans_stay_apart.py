"""What a plan gives is said in one place: nobody else compares plans' names, and no process of a
plane reads licences or entitlements. Each rule is shown with a planted violation.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLANS = {"trial", "professional", "enterprise"}
#: Processes that run where agents are.
OF_PLANES = ("audit", "authorizer", "mcp_stdio", "proxy")


def compared(source: str) -> Iterator[int]:
    """Lines on which something is compared with a plan's name."""
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        named = {
            inner.value
            for part in parts
            for inner in ast.walk(part)
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
        }
        if named & PLANS:
            yield getattr(node, "lineno", 0)


def imports(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("behavry.entitlements")}


def sources(*services: str) -> dict[str, str]:
    files = [file for name in services for file in (ROOT / "services" / name).rglob("*.py")]
    assert files
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


def test_nobody_but_entitlements_compares_plans_by_name() -> None:
    others = sorted(
        one.name
        for one in (ROOT / "services").iterdir()
        if one.is_dir() and one.name not in {"entitlements", "__pycache__"}
    )
    found = {file: list(compared(text)) for file, text in sources(*others).items()}

    assert {} == {file: lines for file, lines in found.items() if lines}


def test_no_process_of_a_plane_reads_entitlements() -> None:
    found = {file: imports(text) for file, text in sources(*OF_PLANES).items()}

    assert {} == {file: names for file, names in found.items() if names}


@pytest.mark.parametrize(
    "planted",
    [
        "if plan == 'enterprise':\n    pass",
        "allowed = plan in {'trial', 'professional'}",
        "match plan:\n    case 'trial':\n        pass",
    ],
)
def test_a_planted_comparison_is_seen(planted: str) -> None:
    assert list(compared(planted))


@pytest.mark.parametrize(
    "planted",
    [
        "from behavry.entitlements.v1 import entitlements_pb2",
        "import behavry.entitlements.v1.entitlements_pb2_grpc",
    ],
)
def test_a_planted_import_is_seen(planted: str) -> None:
    assert imports(planted)
