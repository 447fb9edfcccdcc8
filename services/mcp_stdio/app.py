"""From options to an exit status: opens what is needed in order, carries messages, closes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import Final

from services.common.clock import SystemClock
from services.mcp_stdio.credential import AgentKey, Credential, CredentialRefused, Tokens
from services.mcp_stdio.gateway import Gateway, client_session
from services.mcp_stdio.messages import MAX_LINE
from services.mcp_stdio.options import Options
from services.mcp_stdio.pipes import Input, Output
from services.mcp_stdio.relay import Relay
from services.mcp_stdio.token_endpoint import TokenEndpoint

OK: Final = 0
REFUSED: Final = 3


async def serve(options: Options) -> int:
    """0 at the end of input, 3 where the credential is refused."""
    source = Input(sys.stdin.fileno(), MAX_LINE)
    output = Output(sys.stdout.fileno(), gone=source.end)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # of Windows
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, source.end)
    async with client_session(options.ca) as http:
        credential: Credential = AgentKey(options.agent_key)
        if not options.agent_key:
            endpoint = TokenEndpoint(
                http,
                options.token_url,
                client_id=options.client_id,
                client_secret=options.client_secret,
            )
            credential = Tokens(endpoint, SystemClock())
        gateway = Gateway(
            http,
            options.server_url,
            credential=credential,
            requester=options.requester_id,
            say=say,
        )
        status = OK
        try:
            await Relay(gateway, output.write, say).run(source.lines())
        except* CredentialRefused as refused:
            say(str(refused.exceptions[0]))
            status = REFUSED
        await output.flush()
    return status


def say(text: str) -> None:
    """Words are for stderr: stdout carries messages alone."""
    sys.stderr.write(f"behavry-mcp-stdio: {text}\n")
    sys.stderr.flush()
