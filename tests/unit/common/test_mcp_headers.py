"""Text in headers, and out of them again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared import inbound

from services.common.mcp_headers import at, decode, encode, render


@given(st.text(max_size=40))
def test_a_value_survives_its_disguise_and_the_stock_codec_agrees(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    carried = encode(text)

    assert carried.isascii()
    assert "\n" not in carried
    assert text == decode(carried)
    assert text == inbound.decode_header_value(carried)


def test_what_is_no_text_has_a_form_and_no_reader() -> None:
    assert decode(encode("\ud800")) is None


@pytest.mark.parametrize(
    "carried",
    ["=?base64?YQ?=", "=?base64?YR==?=", "=?base64?!?=", "=?base64?/w==?=", "\xe9", "a\n"],
)
def test_what_two_readers_could_read_differently_is_not_read(carried: str) -> None:
    assert decode(carried) is None


@pytest.mark.parametrize(
    ("path", "rendered"),
    [
        (("a", "b"), "true"), (("a", "n"), "-3"), (("a", "f"), "1.5"), (("s",), "x"),
        (("a",), None), (("s", "x"), None), (("none",), None), (("l", "0"), None),
    ],
)  # fmt: skip
def test_an_argument_as_a_header_carries_it(path: tuple[str, ...], rendered: Any) -> None:
    arguments = {"a": {"b": True, "n": -3, "f": 1.5}, "s": "x", "l": ["y"]}

    assert rendered == render(at(arguments, path))
