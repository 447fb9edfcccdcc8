"""Pages of lists that grow for ever: a page looks at so many rows and no more, whatever its filter
finds among them.

Decides where a page ends and from where the next one goes on. The statement, its index and its
filter are the store's; it reads newest first, at most WINDOW rows, and answers those that fit, one
more than a page holds, and in any case the last one that it looked at. Each row tells

- `id`, by which the list is ordered,
- `kept`: whether it fits,
- `edge`: whether it is the last that was looked at, while there may be more behind it.
"""

from collections.abc import Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

#: Some tens of milliseconds' worth of rows that fit nothing.
WINDOW: Final = 10_000


class Columns(Protocol):
    def __getitem__(self, name: str, /) -> Any: ...


#: `page_of` reads its columns.
Row = TypeVar("Row", bound=Columns)


class Page(NamedTuple, Generic[Row]):
    shown: Sequence[Row]
    #: The id behind which the next page begins; empty: the list has ended.
    following: str


def page_of(rows: Sequence[Row], *, size: int, id: str = "id") -> Page[Row]:
    """A page may be short, even empty, and still have one after it (AIP-158)."""
    kept = [row for row in rows if row["kept"]]
    if len(kept) > size:
        return Page(kept[:size], str(kept[size - 1][id]))
    if rows and rows[-1]["edge"]:
        return Page(kept, str(rows[-1][id]))
    return Page(kept, "")
