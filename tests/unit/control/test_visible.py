"""What strangers wrote is shown as what it is."""

import unicodedata

import pytest

from services.control.visible import is_plain, markup, spelled


@pytest.mark.parametrize(
    "text", ["git_commit", "Zürich, 東京 מה קורה", "a+b=c; 50 % $x", "e\u0301", ""]
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert text == spelled(text)


@pytest.mark.parametrize(
    "hidden",
    [
        "\u202e", "\u2066", "\u200f", "\u061c",  # order
        "\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u034f", "\u3164", "\u2800",  # nothing
        "\ufe0f", "\U000e0100", "\U000e0041",  # variations, tags
        "\x00", "\x1b", "\x7f", "\x9b", "\n", "\r", "\t", "\u2028", "\u2029", "\u0085",  # control
        "\u00a0", "\u2003", "\u3000",  # spaces that are none
        "\ue000", "\uffff", "\U0010ffff", "\ud800",  # nobody's
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_spelled_out(hidden: str) -> None:
    assert f"a[U+{ord(hidden):04X}]b" == spelled(f"a{hidden}b")
    assert hidden not in markup(f"a{hidden}b")


def test_no_format_or_control_character_is_plain() -> None:
    shown = [c for c in map(chr, range(0x110000)) if is_plain(c)]

    assert not {unicodedata.category(c)[0] for c in shown} & {"C"}
    assert [" "] == [c for c in shown if unicodedata.category(c)[0] == "Z"]


def test_markup_is_escaped_and_kept_apart() -> None:
    assert (
        '<bdi>&lt;a href=&quot;x&quot;&gt;<span class="unseen">[U+202E]</span>&amp;</bdi>'
        == markup('<a href="x">\u202e&')
    )
    assert "" == markup("")
