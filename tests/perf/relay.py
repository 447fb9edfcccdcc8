"""The relay's bench: what the proxy process costs beside a proxy made of the SDK's own halves.

Subjects take turns in slices, as in bench.py: the tool server alone, the SDK's proxy, our proxy
with an authorizer that says yes at once (`relay`), and a whole installation (`behavry`); both eras.
CPU is judged with eight callers, latency with one. A worthless run ends with 1, missed targets
with 3. `--baseline` is the `--out` of an earlier run on the same machine, against which p95 counts.

    python -m tests.perf.relay [--seconds S] [--eras modern,legacy] [--engine embedded|none]
                               [--short] [--out FILE] [--baseline FILE]
"""

import argparse
import importlib.metadata
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.fakes import mcp_wire as wire
from tests.fakes.children import child
from tests.perf import subjects
from tests.perf.arithmetic import Run
from tests.perf.bench import (
    IDLE_S,
    Bench,
    Client,
    Load,
    broken,
    check_frozen,
    machine,
    revision,
)
from tests.perf.load import Target
from tests.perf.relay_report import missed, table
from tests.perf.sessions import opened
from tests.perf.subjects import Subject

SDK_PROXY: Final = Path(__file__).with_name("sdk_proxy.py")
SDK_VERSION: Final = "2.3.0"
LOADS: Final = (Load(kind="latency", c=1), Load(kind="throughput", c=8))


def check_sdk() -> None:
    """The yardstick is the one that was agreed on."""
    check_frozen(SDK_PROXY)
    found = importlib.metadata.version("mcp")
    if found != SDK_VERSION:
        message = f"the SDK is {found}, the bench compares with {SDK_VERSION}"
        raise SystemExit(message)


def asked_in(era: str, url: str, token: str | None) -> Callable[[], list[Target]]:
    """One agent; in the legacy era with a session that lasts."""
    (target,) = subjects.targets(url, [token or ""])
    if token is None:
        target = msgspec.structs.replace(target, token=None)
    if era == "legacy":
        version = wire.LEGACY[0]
        session = opened(url, token, version)
        target = msgspec.structs.replace(target, version=version, session=session)
    return lambda: [target]


@contextmanager
def all_subjects(eras: list[str], engine: str) -> Iterator[Bench]:
    with ExitStack() as opened_here:
        enter = opened_here.enter_context
        scratch = Path(enter(tempfile.TemporaryDirectory(prefix="bhv-relay-")))
        server, ready = enter(child("tests.fakes.mcp_echo"))
        url, server_pid = ready["url"], server.pid
        client, _ = enter(child("tests.perf.load"))
        sdk, sdk_ready = enter(child("tests.perf.sdk_proxy", "--upstream", url))
        _, relay = enter(child("tests.perf.relay_alone", "--upstream", url))
        found = []
        for era in eras:
            proxies: list[tuple[str, str, str | None, dict[str, list[int]]]] = [
                ("direct", url, None, {}),
                ("sdk", sdk_ready["url"], None, {"sdk_proxy": [sdk.pid]}),
                ("relay", relay["url"], relay["token"], {"proxy": [relay["pid"]]}),
            ]
            found += [
                Subject(
                    name=f"{name} {era}",
                    engine=era,
                    targets=asked_in(era, at, token),
                    pids=_named({"tool_server": [server_pid], **pids}),
                )
                for name, at, token, pids in proxies
            ]
        if engine != "none":
            stack, trade = enter(subjects.behavry(engine, url, scratch))
            found.append(subjects.governed(engine, stack, subjects.Tokens(trade), server_pid))
        yield Bench(client=Client(client), subjects=found)


def _named(pids: dict[str, list[int]]) -> Callable[[], dict[str, list[int]]]:
    return lambda: pids


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.perf.relay")
    parser.add_argument("--seconds", type=float, default=10.0, help="per subject and load")
    parser.add_argument("--eras", default="modern,legacy")
    parser.add_argument("--engine", default="embedded")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--baseline", type=Path)
    return parser.parse_args()


def main() -> int:
    asked = options()
    check_sdk()
    seconds, idle_s = (1.0, 1.0) if asked.short else (asked.seconds, IDLE_S)
    with all_subjects(asked.eras.split(","), asked.engine) as bench:
        bench.warm_up(list(LOADS), min(1.0, seconds / 4))
        bench.idle(idle_s)
        bench.run(list(LOADS), seconds)
        runs, about = bench.runs(), machine(bench)
    if asked.out:
        write(asked.out, {"machine": about, "revision": revision(), "runs": runs})
    print("\n".join(table(runs)))
    worthless = broken(bench)
    for line in worthless:
        print(f"BROKEN {line}", file=sys.stderr)
    short_of = [] if asked.short else missed(runs, read(asked.baseline) if asked.baseline else ())
    for line in short_of:
        print(f"MISSED {line}", file=sys.stderr)
    return 1 if worthless else 3 if short_of else 0


def write(file: Path, what: dict[str, Any]) -> None:
    file.write_bytes(msgspec.json.format(msgspec.json.encode(what), indent=1))


def read(file: Path) -> list[Run]:
    return msgspec.convert(msgspec.json.decode(file.read_bytes())["runs"], list[Run])


if __name__ == "__main__":
    sys.exit(main())
