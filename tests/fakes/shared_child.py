"""A stdio tool server that several agents share: it works on many calls at once, in no order.

It tells of each call's progress, answers with the call's own name, and never answers one that says
`hang` before it is given up; then it does, too late. What was given up is in a file.

    python -m tests.fakes.shared_child FILE
"""

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

from tests.fakes import mcp_wire as wire

TOOLS = [wire.tool("talk", "Talks.", {"call": {"type": "string"}})]


class Child:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.hanging: dict[Any, dict[str, Any]] = {}
        self.dice = random.Random(7)  # an order, no secret
        self.tasks: set[asyncio.Task[None]] = set()

    def say(self, message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()

    def hear(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "server/discover":
                self.say(wire.discovered(message, "shared"))
            case "tools/list":
                self.say(wire.listed(message, TOOLS))
            case "tools/call":
                task = asyncio.get_running_loop().create_task(self.work(message))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            case "notifications/cancelled":
                call = self.hanging.pop(message["params"]["requestId"], None)
                with self.file.open("a") as file:
                    file.write(f"{call['params']['arguments']['call'] if call else '?'}\n")
                if call is not None:
                    self.say(wire.result(call, wire.content("late")))
            case _ if "id" in message:
                self.say(wire.error(message, wire.METHOD_NOT_FOUND, "unknown method"))

    async def work(self, message: dict[str, Any]) -> None:
        name = message["params"]["arguments"]["call"]
        token = message["params"].get("_meta", {}).get("progressToken")
        if "hang" in name:
            self.hanging[message["id"]] = message
        for done in (1, 2):
            params = {"progressToken": token, "progress": done, "message": name}
            self.say({"method": "notifications/progress", "params": params})
            await asyncio.sleep(self.dice.random() / 500)
        if "hang" not in name:
            self.say(wire.result(message, wire.content(name)))


async def main() -> None:
    child = Child(Path(sys.argv[1]))
    reader = asyncio.StreamReader(limit=1024 * 1024)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        child.hear(json.loads(line))


if __name__ == "__main__":
    asyncio.run(main())
