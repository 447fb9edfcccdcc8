"""Serves the application with uvicorn inside a loop that is not uvicorn's own.

Signals stay the process's; nothing is logged but our own lines; httptools parses, because h11 is
three times as slow.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import uvicorn
from fastapi import FastAPI

from services.common.supervisor import Supervisor

DRAIN_S: Final = 5
LOOK_S: Final = 0.01


@asynccontextmanager
async def serving(app: FastAPI, listen: str, supervisor: Supervisor) -> AsyncIterator[str]:
    """Yields `host:port` once connections are taken (port 0: a free one); drains at the end."""
    host, _, port = listen.rpartition(":")
    listener = _bind(host.strip("[]"), int(port))
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        backlog=512,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    bound = f"{host}:{listener.getsockname()[1]}"
    loop = supervisor.once("http", server.main_loop)
    try:
        yield bound
    finally:
        loop.cancel()
        await _drained(server, listener)


async def _drained(server: uvicorn.Server, listener: socket.socket) -> None:
    """What uvicorn would do looks ten times a second, and at least once: whoever stops waits for
    that. 1. no more connections  2. idle ones end, the others after their answer  3. or after 5 s.
    """
    for accepting in server.servers:  # 1
        accepting.close()
    listener.close()
    state = server.server_state
    try:
        async with asyncio.timeout(DRAIN_S):
            while state.connections or state.tasks:
                for connection in list(state.connections):  # 2
                    connection.shutdown()
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        for task in state.tasks:  # 3
            task.cancel()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Head and body of an answer are two writes: the second must not wait for the first one's ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host, port))
    listener.setblocking(False)
    return listener
