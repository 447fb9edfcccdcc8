"""The load client against the echo server: right answers are counted, wrong ones have a reason."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.fakes.children import child
from tests.fakes.mcp_echo import read_ledger
from tests.perf.bench import check_floor
from tests.perf.load import Order, Pool, Result, Slice, Target
from tests.perf.procs import family, grown

STALL_S = 0.2


@contextmanager
def echo(*arguments: str) -> Iterator[Target]:
    with child("tests.fakes.mcp_echo", *arguments) as (_, ready):
        where = urlsplit(ready["url"])
        yield Target(host=where.hostname or "", port=where.port or 0, path=where.path)


def carry_out(target: Target, *, tool: str = "echo", c: int = 1, limit: int = 20) -> Result:
    order = Order(targets=[target], tool=tool, prefix="t", seconds=5, c=c, limit=limit)
    with Pool() as pool:
        return Slice(order, pool).run()


def test_every_call_runs_once_with_arguments_of_its_own(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"

    with echo("--ledger", str(ledger)) as target:
        result = carry_out(target, c=4, limit=50)

    ran = read_ledger(ledger)
    assert 50 == len(result.latencies_us) == len(ran) == len(set(ran))
    assert {} == result.errors


def test_a_tool_that_refuses_is_an_error_and_not_a_latency() -> None:
    with echo() as target:
        result = carry_out(target, tool="no_such_tool", limit=3)

    assert [] == result.latencies_us
    assert {"tool error": 3} == result.errors


def test_an_answer_to_another_call_is_an_error() -> None:
    stale = b'{"result":{"content":[{"type":"text","text":"somebody-else "}],"isError":false}}'

    with answering(stale) as target:
        result = carry_out(target, limit=1)

    assert {"another call's answer": 1} == result.errors


def test_what_one_slow_answer_made_others_wait_is_counted() -> None:
    """A closed loop would see one slow call; here every call due in the stall shows it."""
    right = b'{"result":{"content":[{"type":"text","text":"t-%d "}],"isError":false}}'

    with answering(right, stall_first=True) as target:
        order = Order(targets=[target], tool="x", prefix="t", seconds=5, rate=100, limit=5)
        with Pool() as pool:
            result = Slice(order, pool, connections=1).run()

    late = sorted(result.latencies_us)
    assert 5 == len(late)
    assert late[0] >= (STALL_S - 4 / 100) * 1e6 * 0.9


@contextmanager
def answering(body: bytes, *, stall_first: bool = False) -> Iterator[Target]:
    """A server of one connection that gives the same answer (numbered, if it has a %d)."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        number = 0
        with connection:
            while connection.recv(65536):
                number += 1
                if stall_first and number == 1:
                    stop.wait(STALL_S)
                answer = body % number if b"%d" in body else body
                head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer)
                connection.sendall(head + answer)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    try:
        yield Target(host="127.0.0.1", port=listener.getsockname()[1], path="/mcp")
    finally:
        stop.set()
        listener.close()


def test_the_floor_is_the_frozen_one() -> None:
    check_floor()


def test_a_subtree_that_counts_under_another_name_is_not_counted_twice() -> None:
    above = {2: 1, 3: 2, 4: 2, 5: 4}

    assert [1, 2, 3, 4, 5] == sorted(family(1, above))
    assert [1, 2, 3] == sorted(family(1, above, without=[4]))


def test_a_process_that_ended_does_not_take_time_back() -> None:
    assert {"proxy": 0.0, "audit": 3.0} == grown(
        {"proxy": 9.0, "audit": 1.0}, {"proxy": 2.0, "audit": 4.0}
    )
