"""The load client: keep-alive connections, distinct arguments, every answer looked at.

Plain sockets under one epoll in a process of its own, because the client must cost less than what
it measures and because an event loop's timers are too coarse for an open loop (a millisecond; here
the kernel's own, some 60 microseconds). Closed loop: `c` callers, each sends when its answer came.
Open loop: calls are due at fixed times whatever the answers do, and latency counts from when a call
was due. An answer that is not the answer to this very call is an error with a reason.

    python -m tests.perf.load        then one JSON order per line on stdin, one JSON result per line
"""

import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Final, Self

import httptools
import msgspec

from tests.fakes import mcp_wire as wire
from tests.perf.arithmetic import late_by

ARGUMENT_BYTES: Final = 1000
OPEN_LOOP_CONNECTIONS: Final = 32
ANSWER_TIMEOUT_S: Final = 10.0
PADDING: Final = b"the quick brown fox jumps over the lazy dog; "


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where the calls of one agent go."""

    host: str
    port: int
    path: str
    token: str | None = None
    version: str = wire.MODERN
    session: str | None = None
    """Legacy: what `initialize` gave, if it gave one."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One slice of load. `rate` set: open loop; else closed with `c` callers."""

    targets: list[Target]
    tool: str
    prefix: str
    seconds: float
    c: int = 1
    rate: float | None = None
    limit: int | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    latencies_us: list[int]
    errors: dict[str, int]
    seconds: float
    first_failures: list[str]


class Calls:
    """Makes the bytes of each request: the parts that never change are made once per target."""

    def __init__(self, order: Order) -> None:
        self._prefix = order.prefix.encode()
        self._count = 0
        self._heads = [_head(target, order.tool) for target in order.targets]
        self._tails = [_tail(target) for target in order.targets]
        self._tool = order.tool.encode()
        self._padding = PADDING * (ARGUMENT_BYTES // len(PADDING) + 1)

    def next(self, agent: int) -> tuple[bytes, bytes]:
        """(the call's own id, the request). The text begins with the id, so no two are alike."""
        self._count += 1
        call = b"%s-%d" % (self._prefix, self._count)
        start = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"%s",' % (
            self._count,
            self._tool,
        )
        arguments = b'"arguments":{"call":"%s","kind":"bench","text":"%s %s' % (
            call,
            call,
            self._padding[: ARGUMENT_BYTES - 60 - len(call)],
        )
        body = start + arguments + self._tails[agent]
        return call, b"%scontent-length: %d\r\n\r\n%s" % (self._heads[agent], len(body), body)


def _head(target: Target, tool: str) -> bytes:
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"host: {target.host}:{target.port}",
        "content-type: application/json",
        "accept: application/json, text/event-stream",
        f"mcp-protocol-version: {target.version}",
    ]
    if target.version == wire.MODERN:
        lines += ["mcp-method: tools/call", f"mcp-name: {tool}"]
    if target.session is not None:
        lines.append(f"mcp-session-id: {target.session}")
    if target.token is not None:
        lines.append(f"authorization: Bearer {target.token}")
    return "".join(f"{line}\r\n" for line in lines).encode()


def _tail(target: Target) -> bytes:
    if target.version != wire.MODERN:
        return b'"}}}'
    meta = {
        wire.VERSION_META: wire.MODERN,
        wire.CLIENT_META: {"name": "load", "version": "1"},
        wire.CAPABILITIES_META: {},
    }
    return b'"},"_meta":%s}}' % msgspec.json.encode(meta)


class Connection:
    """One keep-alive connection and the one call that is out on it."""

    def __init__(self, target: Target, agent: int) -> None:
        self.agent = agent
        self.call = b""
        self.due = 0.0
        self.waiting = False
        self._target = target
        self._open()

    def _open(self) -> None:
        self.socket = socket.create_connection((self._target.host, self._target.port), 5)
        self.socket.settimeout(None)  # else each recv asks poll() first
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._complete = False

    def closed_while_idle(self) -> bool:
        """Servers may end a connection that nobody uses; who sends on it anyway loses the call."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def reopen(self) -> None:
        self.socket.close()
        self._open()

    def send(self, call: bytes, request: bytes, due: float) -> None:
        self.call, self.due, self.waiting = call, due, True
        self._body.clear()
        self._complete = False
        self.socket.sendall(request)

    def receive(self) -> str | None:
        """None: more to come. "": the right answer. Else what is wrong with it."""
        try:
            data = self.socket.recv(65536)
            if not data:
                return "closed"
            self._parser.feed_data(data)
        except OSError:
            return "reset"
        except httptools.HttpParserError:
            return "no http"
        return self._judge() if self._complete else None

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._complete = True

    def _judge(self) -> str:
        status = self._parser.get_status_code()
        if status != 200:
            return f"http {status}"
        if b'"error":' in self._body:
            return "rpc error"
        if b'"isError":true' in self._body:
            return "tool error"
        return "" if self.call + b" " in self._body else "another call's answer"

    def body(self) -> str:
        return self._body[:400].decode(errors="replace")


class Pool:
    """Connections that stay between slices, by target: keep-alive is what real clients do."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int, str, str | None, int], Connection] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._idle.values():
            connection.socket.close()

    def take(self, targets: list[Target], count: int) -> list[Connection]:
        taken = []
        for number in range(count):
            agent = number % len(targets)
            target = targets[agent]
            key = (target.host, target.port, target.path, target.token, number)
            if key not in self._idle:
                self._idle[key] = Connection(target, agent)
            elif self._idle[key].closed_while_idle():
                self._idle[key].reopen()
            taken.append(self._idle[key])
        return taken


class Slice:
    """One order carried out."""

    def __init__(self, order: Order, pool: Pool, *, connections: int | None = None) -> None:
        self._order = order
        self._calls = Calls(order)
        count = connections or (OPEN_LOOP_CONNECTIONS if order.rate else order.c)
        self._free = deque(pool.take(order.targets, count))
        self._by_fd = {one.socket.fileno(): one for one in self._free}
        self._epoll = select.epoll()
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN)
        self._latencies: list[int] = []
        self._errors: Counter[str] = Counter()
        self._failures: list[str] = []
        self._sent = 0

    def run(self) -> Result:
        began = time.perf_counter()
        for due in self._due_times(began):
            self._wait_until(due)
            self._send(due)
        last_answer_by = time.perf_counter() + ANSWER_TIMEOUT_S
        while self._busy() and time.perf_counter() < last_answer_by:
            self._gather(last_answer_by)
        for connection in list(self._by_fd.values()):
            if connection.waiting:
                self._finish(connection, "no answer")
                self._renew(connection)
        seconds = time.perf_counter() - began
        self._epoll.close()
        return Result(
            latencies_us=self._latencies,
            errors=dict(+self._errors),
            seconds=seconds,
            first_failures=self._failures,
        )

    def _due_times(self, began: float) -> Iterator[float]:
        """Closed loop: a call is due as soon as a caller is free; open loop: when its turn is."""
        end = began + self._order.seconds
        number = 0
        while self._order.limit is None or number < self._order.limit:
            if self._order.rate is None:
                while not self._free:
                    self._gather(time.perf_counter() + ANSWER_TIMEOUT_S)
                due = time.perf_counter()
            else:
                due = began + number / self._order.rate
            if due >= end:
                return
            number += 1
            yield due

    def _wait_until(self, due: float) -> None:
        while (now := time.perf_counter()) < due:
            self._gather(due, now)
        while not self._free:  # all connections are out: the call waits, its clock runs
            self._gather(time.perf_counter() + ANSWER_TIMEOUT_S)

    def _gather(self, until: float, now: float | None = None) -> None:
        """Takes what answers are there; sleeps for the first one, no longer than `until`.
        select() on the epoll, because epoll itself rounds its wait up to a millisecond.
        """
        left = until - (time.perf_counter() if now is None else now)
        ready, _, _ = select.select([self._epoll], [], [], max(0.0, left))
        if not ready:
            self._expire()
            return
        for fd, _ in self._epoll.poll(0):
            connection = self._by_fd[fd]
            verdict = connection.receive()
            if verdict is not None:
                self._finish(connection, verdict)

    def _finish(self, connection: Connection, verdict: str) -> None:
        if connection.waiting:
            connection.waiting = False
            if verdict:
                self._fail(verdict, connection)
            else:
                self._latencies.append(late_by(connection.due, time.perf_counter()))
            self._free.append(connection)
        if verdict in {"closed", "reset", "no http"}:
            self._renew(connection)

    def _send(self, due: float) -> None:
        connection = self._free.popleft()
        call, request = self._calls.next(connection.agent)
        self._sent += 1
        try:
            connection.send(call, request, due)
        except OSError:
            connection.waiting = False
            self._fail("not sent", connection)
            self._renew(connection)
            self._free.append(connection)

    def _renew(self, connection: Connection) -> None:
        del self._by_fd[connection.socket.fileno()]
        connection.reopen()
        self._by_fd[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket.fileno(), select.EPOLLIN)

    def _expire(self) -> None:
        """A call nobody answered is an error, and its connection is not used for another."""
        oldest = time.perf_counter() - ANSWER_TIMEOUT_S
        for connection in list(self._by_fd.values()):
            if connection.waiting and connection.due < oldest:
                self._finish(connection, "no answer")
                self._renew(connection)

    def _fail(self, reason: str, connection: Connection) -> None:
        self._errors[reason] += 1
        if len(self._failures) < 3:
            self._failures.append(f"{reason}: {connection.body()}")

    def _busy(self) -> int:
        return sum(one.waiting for one in self._by_fd.values())


def main() -> None:
    print("{}", flush=True)
    with Pool() as pool:
        for line in sys.stdin.buffer:
            result = Slice(msgspec.json.decode(line, type=Order), pool).run()
            sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
