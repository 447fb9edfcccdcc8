"""What shows each row of entitlements.md (rows.yaml): the table is whole, its tests exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.attacks.mcp.test_rows import functions

ROWS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text())


def test_each_row_has_a_figure_and_a_test_or_says_what_it_waits_for() -> None:
    assert [f"E{n}" for n in range(1, 23)] == list(ROWS)
    for row, told in ROWS.items():
        assert ("figure" in told) == ("shown_by" in told), row
        assert "shown_by" in told or "open" in told, row
        assert set(told) <= {"what", "figure", "shown_by", "open"}, row


@pytest.mark.parametrize("row", [row for row, told in ROWS.items() if "shown_by" in told])
def test_what_a_row_names_exists(row: str) -> None:
    named = [one.partition("::") for one in ROWS[row]["shown_by"]]

    assert named
    assert [] == [f"{path}::{name}" for path, _, name in named if name not in functions(path)]
