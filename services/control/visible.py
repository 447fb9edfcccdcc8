"""Makes text that strangers wrote safe to look at: what would hide or reorder it is spelled out.

Decides which characters are shown as they are: letters, marks, digits, punctuation, symbols and the
plain space. Everything else (control, bidirectional, zero-width, unassigned, odd spaces, line ends)
becomes `[U+202E]`. HTML's own characters are escaped.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import Final

#: Shown as they are, by general category.
_PLAIN: Final = frozenset("LMNPS")
#: Letters and marks by category, and yet nothing to see.
_BLANK: Final = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u034f")
_VARIATION: Final = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0), range(0x180B, 0x1810))


def is_plain(character: str) -> bool:
    if character == " ":
        return True
    if character in _BLANK or any(ord(character) in span for span in _VARIATION):
        return False
    return unicodedata.category(character)[0] in _PLAIN


def spelled(text: str) -> str:
    """As plain text."""
    return "".join(c if is_plain(c) else _name(c) for c in text)


def markup(text: str) -> str:
    """As HTML, kept apart from what stands around it whatever its writing direction."""
    return f"<bdi>{''.join(_pieces(text))}</bdi>" if text else ""


def _pieces(text: str) -> Iterator[str]:
    for plain, run in groupby(text, key=is_plain):
        if plain:
            yield escape("".join(run))
        else:
            yield "".join(f'<span class="unseen">{_name(c)}</span>' for c in run)


def _name(character: str) -> str:
    return f"[U+{ord(character):04X}]"
