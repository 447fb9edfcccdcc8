"""The hops that the design fixes, with nothing in them: what no work on our own code can go below.

The floor, and beside it one round trip on a bidirectional gRPC stream to another process, which
asks a third over a socket pair and waits for its answer; then one record of 1 KiB written and
synced; then the relay. No policy is evaluated, nothing parsed, no record has a content. The bench
sets targets as multiples of the floor; this says how many of them the hops take on a machine.

    python -m tests.perf.skeleton [--seconds 8]
"""

import argparse
import asyncio
import os
import socket
import statistics
import struct
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import msgspec
import orjson
import uvicorn
from joserfc.jwk import KeySet

from behavry.authorizer.v1 import authorizer_pb2, authorizer_pb2_grpc
from tests.fakes.children import child
from tests.perf import subjects
from tests.perf.bench import Client
from tests.perf.floor import Floor, Receive, Send, Tokens, _read, _respond
from tests.perf.load import Order

RECORD: Final = b"x" * 1024
_LENGTH: Final = struct.Struct(">I")


class Skeleton(Floor):
    """The floor's relay behind the question and the record."""

    def __init__(self, upstream: str, tokens: Tokens, address: str, file: Path) -> None:
        super().__init__(upstream, tokens)
        self._address = address
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._last = 0
        self._call: Any = None
        self._file = os.open(file, os.O_CREAT | os.O_WRONLY, 0o600)
        os.posix_fallocate(self._file, 0, 64 << 20)
        self._at = 0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if not self._tokens.check(headers[b"authorization"].removeprefix(b"Bearer ")):
            await _respond(send, 401, b"application/json", b"{}")
            return
        body = await _read(receive)
        await self._ask(body)
        os.pwrite(self._file, RECORD, self._at)
        self._at = (self._at + len(RECORD)) % (63 << 20)
        os.fdatasync(self._file)
        replay = [{"body": body}]

        async def again() -> dict[str, Any]:  # the floor awaits it
            return replay.pop()

        await super().__call__(scope, again, send)

    async def _ask(self, body: bytes) -> None:
        if self._call is None:
            self._call = await self._open()
        self._last += 1
        answered = self._waiting[self._last] = asyncio.get_running_loop().create_future()
        asks = authorizer_pb2.Asks()
        asks.asks.add(id=self._last, arguments_json=body)
        await self._call.write(authorizer_pb2.DecideRequest(asks=asks))
        await answered

    async def _open(self) -> Any:
        channel = grpc.aio.insecure_channel(f"unix:{self._address}")
        call = authorizer_pb2_grpc.AuthorizerServiceStub(channel).Decide()
        self._reading = asyncio.create_task(self._read_answers(call, channel))
        return call

    async def _read_answers(self, call: Any, channel: Any) -> None:  # the channel lives with it
        async for answer in call:
            for verdict in answer.verdicts.verdicts:
                self._waiting.pop(verdict.id).set_result(None)
        await channel.close()


class Questions:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def answer(
        self, requests: AsyncIterator[authorizer_pb2.DecideRequest], _: Any
    ) -> AsyncIterator[authorizer_pb2.DecideResponse]:
        async for request in requests:
            verdicts = authorizer_pb2.Verdicts()
            for ask in request.asks.asks:
                self._writer.write(_LENGTH.pack(len(ask.arguments_json)) + ask.arguments_json)
                (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                verdicts.verdicts.add(id=ask.id, envelope=await self._reader.readexactly(size))
            yield authorizer_pb2.DecideResponse(verdicts=verdicts)


def engine(descriptor: int) -> None:
    """Answers each frame with itself."""
    pair = socket.socket(fileno=descriptor)
    stream = pair.makefile("rwb")
    while head := stream.read(_LENGTH.size):
        stream.write(head + stream.read(_LENGTH.unpack(head)[0]))
        stream.flush()


async def authorizer(address: str) -> None:
    ours, theirs = socket.socketpair()
    own = [sys.executable, "-m", "tests.perf.skeleton", "engine", str(theirs.fileno())]
    process = await asyncio.create_subprocess_exec(*own, pass_fds=[theirs.fileno()])
    theirs.close()
    reader, writer = await asyncio.open_connection(sock=ours)
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        Questions(reader, writer).answer,
        request_deserializer=authorizer_pb2.DecideRequest.FromString,
        response_serializer=authorizer_pb2.DecideResponse.SerializeToString,
    )
    service = "behavry.authorizer.v1.AuthorizerService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Decide": handler}),)
    )
    server.add_insecure_port(f"unix:{address}")
    await server.start()
    print(orjson.dumps({"pid": os.getpid()}).decode(), flush=True)
    try:
        await server.wait_for_termination()
    finally:
        process.kill()


def proxy(upstream: str, keys_file: str, address: str, record_file: str) -> None:
    keys = KeySet.import_key_set(orjson.loads(Path(keys_file).read_bytes()))
    listener = socket.create_server(("127.0.0.1", 0))
    print(
        orjson.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"}).decode(),
        flush=True,
    )
    config = uvicorn.Config(
        Skeleton(upstream, Tokens(keys), address, Path(record_file)),
        loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning",
        proxy_headers=False, date_header=False, server_header=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def running(scratch: Path) -> Iterator[dict[str, str]]:
    with ExitStack() as opened:
        _, server = opened.enter_context(child("tests.fakes.mcp_echo"))
        keys, _trade = _SELF_MADE
        keys_file, address = scratch / "keys", str(scratch / "a.sock")
        keys_file.write_bytes(msgspec.json.encode(keys))
        floor_url, _ = opened.enter_context(subjects.floor(server["url"], keys, scratch))
        opened.enter_context(child("tests.perf.skeleton", "authorizer", address))
        _, ready = opened.enter_context(
            child("tests.perf.skeleton", "proxy", server["url"], str(keys_file), address,
                  str(scratch / "record"))
        )  # fmt: skip
        yield {"direct": server["url"], "floor": floor_url, "skeleton": ready["url"]}


_SELF_MADE: Final = subjects.self_made()


def measure(seconds: float) -> dict[str, float]:
    """Median of one caller's p50 over interleaved slices, in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="bhv-skel-") as scratch, ExitStack() as opened:
        urls = opened.enter_context(running(Path(scratch)))
        process, _ = opened.enter_context(child("tests.perf.load"))
        client, tokens = Client(process), _SELF_MADE[1]()
        medians: dict[str, list[float]] = {name: [] for name in urls}
        for turn in range(1 + max(1, round(seconds / 2))):
            for name, url in urls.items():
                threading.Event().wait(0.2)
                order = Order(
                    targets=subjects.targets(url, tokens), tool=subjects.TOOL,
                    prefix=f"k{turn}", seconds=2.0, c=1, rate=None,
                )  # fmt: skip
                result = client.run(order)
                if result.errors or not result.latencies_us:
                    raise SystemExit(f"{name}: {dict(result.errors)} {result.first_failures[:1]}")
                if turn:  # the first turn only warms up
                    medians[name].append(statistics.median(result.latencies_us) / 1000)
        return {name: statistics.median(found) for name, found in medians.items()}


def main() -> None:
    match sys.argv[1:]:
        case ["authorizer", address]:
            asyncio.run(authorizer(address))
        case ["engine", descriptor]:
            engine(int(descriptor))
        case ["proxy", upstream, keys, address, record]:
            proxy(upstream, keys, address, record)
        case _:
            parser = argparse.ArgumentParser(prog="tests.perf.skeleton")
            parser.add_argument("--seconds", type=float, default=8.0)
            found = measure(parser.parse_args().seconds)
            floor, bare = (found[name] - found["direct"] for name in ("floor", "skeleton"))
            print(f"direct {found['direct']:.3f} ms; the floor adds {floor:.3f} ms")
            print(f"the hops alone add {bare:.3f} ms, {bare / floor:.1f}x the floor")


if __name__ == "__main__":
    main()
