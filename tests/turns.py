"""Which tests go to one worker together when several run beside each other (`-n`).

A file's tests do, as `--dist loadfile` says: they share what the file starts. The journeys of one
engine do too, whatever file they are in: they share an installation, and starting one per file and
engine costs more than most journeys. In which order workers take them is the command line's matter.
"""

import re
from typing import Any

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

_JOURNEY = re.compile(r"tests/journeys/.*\[(?:.*-)?(embedded|opa)(?:-.*)?\]$")


def together(nodeid: str) -> str:
    """The same for all that one worker shall run."""
    journey = _JOURNEY.match(nodeid)
    return f"journeys of {journey[1]}" if journey else nodeid.split("::", 1)[0]


class Turns(LoadFileScheduling):  # type: ignore[misc]  # xdist says nothing of its types
    """Files, and the journeys of each engine."""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Turns | None:
    return Turns(config, log) if config.getoption("dist") == "loadfile" else None
