"""A stdio tool server that tells which process it is, and says when its prompts changed.

    python -m tests.fakes.telling_child modern|legacy

`look` answers with its process, its parent's, and that of a helper which it started and which
outlives it; `change` gives it one prompt more and says so, then answers; `wait` never answers.
"""

import json
import os
import subprocess
import sys
from typing import Any

from tests.fakes import mcp_wire as wire

TOOLS = [wire.tool(name, "Tells.", {}) for name in ("look", "change", "wait")]
CHANGED = "notifications/prompts/list_changed"
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
SUBSCRIPTION_META = "io.modelcontextprotocol/subscriptionId"
OPENING = {"modern": "server/discover", "legacy": "initialize"}


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


class Child:
    def __init__(self, era: str) -> None:
        self.opening = OPENING[era]
        sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
        quiet = subprocess.DEVNULL
        helper = subprocess.Popen(sleep, stdin=quiet, stdout=quiet, stderr=quiet)
        self.pids = {"pid": os.getpid(), "parent": os.getppid(), "helper": helper.pid}
        self.prompts = 1
        self.listeners: list[Any] = []

    def hear(self, message: dict[str, Any]) -> None:
        method = message.get("method")
        if method == self.opening:
            modern = method == OPENING["modern"]
            reply = (wire.discovered if modern else wire.initialized)(message, "telling")
            reply["result"]["capabilities"] = {"tools": {}, "prompts": {"listChanged": True}}
            say(reply)
        elif method == "tools/list":
            say(wire.listed(message, TOOLS))
        elif method == "prompts/list":
            prompts = [{"name": f"p{number}"} for number in range(self.prompts)]
            say(wire.result(message, {"prompts": prompts, "ttlMs": 0, "cacheScope": "private"}))
        elif method == "subscriptions/listen":
            self.listeners.append(message["id"])
            meta = {SUBSCRIPTION_META: message["id"]}
            notifications = message["params"]["notifications"]
            say({"method": ACKNOWLEDGED, "params": {"notifications": notifications, "_meta": meta}})
        elif method == "tools/call":
            self.call(message, message["params"]["name"])
        elif "id" in message:
            say(wire.error(message, wire.METHOD_NOT_FOUND, "unknown method"))

    def call(self, message: dict[str, Any], tool: str) -> None:
        if tool == "change":
            self.prompts += 1
            metas = [{"_meta": {SUBSCRIPTION_META: one}} for one in self.listeners]
            for params in metas or [{}]:
                say({"method": CHANGED, "params": params})
        if tool != "wait":
            say(wire.result(message, wire.content(json.dumps(self.pids))))


if __name__ == "__main__":
    child = Child(sys.argv[1])
    for line in sys.stdin:
        child.hear(json.loads(line))
