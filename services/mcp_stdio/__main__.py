"""The `behavry-mcp-stdio` command. Decides the exit status of what cannot begin."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from services.common.settings import environment
from services.mcp_stdio import options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until the client has nothing more to say, and leave with the status."""
    try:
        told = options.read(sys.argv[1:] if arguments is None else arguments, environment())
    except options.HelpWanted:
        sys.stdout.write(options.USAGE)
        sys.exit(0)
    except options.Usage as bad:
        sys.stderr.write(f"behavry-mcp-stdio: {bad}\n\n{options.USAGE}")
        sys.exit(2)
    from services.mcp_stdio.app import serve  # noqa: PLC0415  # what cannot begin loads no HTTP

    async def until_the_end() -> None:
        # Threads that hang (on the lookup of a name, on a pipe) must not hold up the end.
        os._exit(await serve(told))

    asyncio.run(until_the_end())


if __name__ == "__main__":
    main()
