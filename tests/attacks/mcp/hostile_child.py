"""The hostility of hostile.py from a tool server that is a child: line by line.

    python -m tests.attacks.mcp.hostile_child modern|legacy SEED

Whatever it says before, it gives an honest answer in the end: a child that does not answer is
waited for. Not many of its lines are no JSON, or it would be ended.
"""

from __future__ import annotations

import random
import sys
from typing import Any, Final

import orjson

from tests.attacks.mcp.hostile import heard, wrong
from tests.attacks.mcp.mutations import bent, spelled
from tests.fakes import mcp_wire as wire
from tests.fakes.witness import lifecycle

NO_JSON: Final = 60


class Child:
    def __init__(self, era: str, seed: str) -> None:
        self._era = era
        self._seed = seed
        self._no_json = 0

    def lines(self, message: dict[str, Any]) -> list[bytes]:
        """What is said to one message."""
        if "id" not in message or "method" not in message:
            return []
        if message["method"] != "tools/call":
            return [orjson.dumps(lifecycle(message, message["method"], self._era))]
        number = str(message["params"]["arguments"]["call"])
        rng = random.Random(f"child:{self._seed}:{number}")
        honest = orjson.dumps(wire.result(message, wire.content(f"#{number}")))
        said = [spelled(rng, heard(rng), odd=False).encode() for _ in range(rng.randrange(4))]
        if rng.random() < 0.4:
            said.append(wrong(rng, honest))
        if rng.random() < 0.1 and self._no_json < NO_JSON:
            said.append(bent(rng, honest))
        said = [line.replace(b"\n", b" ") for line in said]
        rng.shuffle(said)
        return [line for line in said if self._tolerable(line)] + [honest]

    def _tolerable(self, line: bytes) -> bool:
        try:
            orjson.loads(line)
        except orjson.JSONDecodeError:
            self._no_json += 1
            return self._no_json < NO_JSON
        return True


def main() -> None:
    child = Child(sys.argv[1], sys.argv[2])
    for line in sys.stdin.buffer:
        for said in child.lines(orjson.loads(line)):
            sys.stdout.buffer.write(said + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
