"""An installation set up as the bench wants it, held for a bench that may run in another tree: a
line when it is ready, then for each line `targets`, `pids` or `chained` one with what that is.

    python -m tests.perf.held ENGINE UPSTREAM
"""

import signal
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.perf import subjects


def main() -> None:
    engine, upstream = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # ends what it holds as well
    with (
        tempfile.TemporaryDirectory(prefix="bhv-held-") as scratch,
        subjects.behavry(engine, upstream, Path(scratch)) as (stack, trade),
    ):
        # The tool server is the bench's own: what it costs is counted there.
        held = subjects.governed(engine, stack, subjects.Tokens(trade), 0)
        told = {"targets": held.targets, "pids": held.pids, "chained": held.chained}
        _say(engine)
        for line in sys.stdin:
            answer = told[line.strip()]
            assert answer is not None
            _say(answer())


def _say(value: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
