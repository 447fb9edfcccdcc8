"""Lines in any split, threads that neither hang nor lose a line."""

import asyncio
import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mcp_stdio.pipes import Input, Output, Splitter

TEXT = b'{"a":1}\n\r\n  \n{"b":2}\r\n' + b"x" * 50 + b"\n{}\nunended"


@given(st.lists(st.integers(0, len(TEXT)), max_size=12))
def test_where_a_line_is_cut_makes_no_difference(cuts: list[int]) -> None:
    splitter = Splitter(40)
    places = [0, *sorted(cuts), len(TEXT)]
    found = [
        line for start, end in itertools.pairwise(places) for line in splitter.feed(TEXT[start:end])
    ]

    assert [b'{"a":1}', b'{"b":2}\r', None, b"{}"] == found


async def test_input_is_read_until_its_end() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\n")
    os.close(writing)

    assert [b"one", b"two"] == [line async for line in Input(reading, 100).lines()]
    os.close(reading)


async def test_input_that_never_ends_is_ended() -> None:
    reading, writing = os.pipe()
    source = Input(reading, 100)
    source.end()

    assert [] == [line async for line in source.lines()]
    os.close(writing)


async def test_output_is_whole_lines_in_order_whoever_gives_up_waiting() -> None:
    reading, writing = os.pipe()
    output = Output(writing, gone=lambda: None)
    given_up = asyncio.ensure_future(output.write(b"one"))
    given_up.cancel()
    await asyncio.gather(*(output.write(b"%d" % n) for n in range(100)), given_up,
                         return_exceptions=True)  # fmt: skip
    await output.flush()
    os.close(writing)
    with os.fdopen(reading, "rb") as read:
        lines = read.read().splitlines()

    assert [b"%d" % n for n in range(100)] == [line for line in lines if line != b"one"]


async def test_a_client_that_does_not_read_any_more_is_noticed() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    gone = asyncio.Event()
    await Output(writing, gone=gone.set).write(b"one")

    async with asyncio.timeout(5):
        await gone.wait()
    os.close(writing)


@pytest.mark.parametrize("size", [1, 16 * 1024 * 1024])
async def test_a_client_that_reads_nothing_holds_nobody_up_at_the_end(size: int) -> None:
    reading, writing = os.pipe()
    output = Output(writing, gone=lambda: None)
    stuck = asyncio.ensure_future(output.write(b"x" * size))
    async with asyncio.timeout(5):
        await output.flush()
    stuck.cancel()
    os.close(reading)  # the thread ends its write and waits
