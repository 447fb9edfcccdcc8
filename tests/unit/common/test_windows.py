"""Where a page ends that may not look at everything."""

from typing import Any

from services.common.postgres.windows import page_of


def looked_at(text: str, *, window: int) -> list[dict[str, Any]]:
    """A statement's rows: `x` fits, `.` does not and is told only at the window's edge."""
    rows = [
        {"id": str(place), "kept": letter == "x", "edge": place == window}
        for place, letter in enumerate(text, 1)
    ]
    return [row for row in rows if row["kept"] or row["edge"]]


def paged(text: str, *, size: int, window: int) -> tuple[list[str], str]:
    page = page_of(looked_at(text, window=window)[: size + 1], size=size)
    return [row["id"] for row in page.shown], page.following


def test_a_full_page_goes_on_behind_its_last_row() -> None:
    assert (["1", "3"], "3") == paged("x.xx", size=2, window=4)
    assert (["1", "2"], "2") == paged("xxx", size=2, window=9)


def test_a_short_page_goes_on_where_the_window_ends() -> None:
    assert (["2"], "4") == paged(".x..", size=2, window=4)
    assert (["4"], "4") == paged("...x", size=2, window=4)
    assert (["1", "4"], "4") == paged("x..x", size=2, window=4)
    assert ([], "4") == paged("....", size=2, window=4)


def test_the_end_has_nothing_after_it() -> None:
    assert (["1", "2"], "") == paged("xx", size=2, window=4)
    assert ([], "") == paged("...", size=2, window=4)
    assert ([], "") == paged("", size=2, window=4)
