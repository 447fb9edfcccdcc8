"""What a compressed answer may become (mcp.md 10.2)."""

import gzip
import random
import zlib

import pytest

from services.proxy.backends.inflating import MAX_RATIO, PIECE, Inflater, NotInflated

PLAIN = random.Random(7).randbytes(200_000).hex().encode()


def bare(content: bytes) -> bytes:
    made = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return made.compress(content) + made.flush()


def inflated(encoding: str, content: bytes, *, step: int = 1000) -> list[bytes]:
    inflater = Inflater(encoding)
    chunks = [content[at : at + step] for at in range(0, len(content), step)]
    return [piece for chunk in chunks for piece in inflater.feed(chunk)]


@pytest.mark.parametrize("step", [1, 1000, 10**9])
@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", gzip.compress(PLAIN)),
        (" X-GZip", gzip.compress(PLAIN)),
        ("deflate", zlib.compress(PLAIN)),
        ("deflate", bare(PLAIN)),
    ],
)
def test_what_was_compressed_comes_out_in_pieces(encoding: str, content: bytes, step: int) -> None:
    pieces = inflated(encoding, content, step=step)

    assert PLAIN == b"".join(pieces)
    assert max(len(piece) for piece in pieces) <= PIECE


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "identity-not", ""])
def test_other_encodings_are_not_taken(encoding: str) -> None:
    with pytest.raises(NotInflated):
        Inflater(encoding)


@pytest.mark.parametrize(
    "content",
    [b"not gzip at all", gzip.compress(PLAIN) + b"more", gzip.compress(b"a") + gzip.compress(b"b")],
    ids=["none", "more after it", "two"],
)
def test_what_was_never_one_compressed_body_is_refused(content: bytes) -> None:
    with pytest.raises(NotInflated):
        inflated("gzip", content)


def test_a_bomb_is_stopped_before_it_is_big() -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    pieces = Inflater("gzip").feed(bomb[:2000])
    given = [next(pieces)]

    with pytest.raises(NotInflated):
        given.extend(pieces)

    assert len(b"".join(given)) <= 2000 * MAX_RATIO


def test_a_hundredfold_is_still_an_answer() -> None:
    text = bytes(range(256)) * 60
    packed = gzip.compress(text)
    assert 20 < len(text) / len(packed) < MAX_RATIO

    assert text == b"".join(inflated("gzip", packed, step=10**6))
