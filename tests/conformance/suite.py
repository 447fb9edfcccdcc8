"""Running the protocol's conformance suite, and reading what it found.

Decides what a check's result is (the worst of its occurrences), what is lost between two runs of
the same scenarios, and which failures a list of expected ones covers. The suite itself is
`@modelcontextprotocol/conformance`, installed by its lock file.
"""

import os
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from tests.fakes.children import ROOT

SUITE: Final = ROOT / ".tools" / "bin" / "mcp-conformance"
RUN_TIMEOUT_S: Final = 240
CASE_TIMEOUT_S: Final = 60
SCORED: Final = {"2025-11-25": 30, "2026-07-28": 37}

EITHER_WAY: Final[dict[tuple[str, str], str]] = {
    ("server-sse-multiple-streams", "server-sse-streams-functional"): (
        "a list may be answered by a stream or without one, and the gateway has it at hand"
    ),
}
"""Checks of what a server may do or leave, which the gateway leaves: why. They may not be reached;
to fail is a loss like any other.
"""

_WORSE: Final = ("INFO", "SKIPPED", "SUCCESS", "WARNING", "FAILURE")
"""From what says nothing to what says most."""

_STAMP: Final = re.compile(r"-\d{4}-\d\d-\d\dT[\d-]+Z$")
_LINE: Final = re.compile(r"^([✓✗]) ([a-z0-9][^ :]*): (\d+) passed, (\d+) failed", re.MULTILINE)


class Check(msgspec.Struct, frozen=True):
    """One line of a scenario's checks.json."""

    id: str
    status: str
    errorMessage: str = ""  # noqa: N815  # the suite's name for it
    name: str = ""
    details: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The worst that a check said, and why."""

    status: str
    why: str = ""

    @property
    def good(self) -> bool:
        return self.status not in {"FAILURE", "WARNING"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the suite: its exit status, its output, and each scenario's checks."""

    status: int
    output: str
    scenarios: Mapping[str, Mapping[str, Found]] = field(default_factory=dict)

    def passed(self) -> set[str]:
        """The scenarios without a failed check, as the suite itself counts."""
        return {name for mark, name, _, _ in _LINE.findall(self.output) if mark == "✓"}

    def ran(self) -> set[str]:
        return {name for _, name, _, _ in _LINE.findall(self.output)}

    def counts(self, scenario: str) -> tuple[int, int]:
        """How many of its checks passed and failed."""
        for _, name, passed, failed in _LINE.findall(self.output):
            if name == scenario:
                return int(passed), int(failed)
        return 0, 0


@dataclass(frozen=True, slots=True, order=True)
class Loss:
    """A check that was good in one run and is not in the other."""

    scenario: str
    check: str
    was: str
    now: str
    why: str

    @property
    def allowed(self) -> str:
        """Why it is none, if it is none."""
        if self.now in {"FAILURE", "WARNING"}:
            return ""
        return EITHER_WAY.get((self.scenario, self.check), "")


def losses(direct: Run, through: Run) -> Iterator[Loss]:
    """What passes direct and does not through: failed, warned about, or not reached at all.

    A check that only a failure makes appear (it reports a broken setup) is a loss too.
    """
    for scenario, before in direct.scenarios.items():
        after = through.scenarios.get(scenario, {})
        for name in sorted(before.keys() | after.keys()):
            was = before.get(name, Found(status="absent"))
            now = after.get(name, Found(status="absent"))
            unreached = was.status == "SUCCESS" and now.status in {"SKIPPED", "INFO", "absent"}
            if unreached or (was.good and not now.good):
                yield Loss(scenario, name, was.status, now.status, now.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A run beside its list of expected failures."""

    unexpected: tuple[str, ...]
    stale: tuple[str, ...]

    @property
    def good(self) -> bool:
        return not self.unexpected and not self.stale


def expected(file: Path) -> tuple[str, ...]:
    """The entries of a list as the suite reads it: `scenario`, or `scenario:check`."""
    entries = yaml.safe_load(file.read_bytes())
    return tuple(str(entry) for entry in entries["server"])


def against(run: Run, entries: Collection[str]) -> Against:
    """The suite's own rule, for all that ran: it judges a list beside `--requirements` by what is
    scored alone, and beside `--spec-version` it runs no extension.
    """
    failed = {
        f"{scenario}:{check}"
        for scenario, checks in run.scenarios.items()
        for check, found in checks.items()
        if not found.good
    }
    scenarios = {one.partition(":")[0] for one in failed}
    unexpected = sorted(
        one for one in failed if one not in entries and one.partition(":")[0] not in entries
    )
    stale = sorted(one for one in entries if one not in failed | scenarios)
    return Against(unexpected=tuple(unexpected), stale=tuple(stale))


def server_suite(url: str, *choice: str, into: Path) -> Run:
    """The suite as a client of the server at this address."""
    return _suite("server", "--url", url, *choice, into=into)


def client_suite(command: Sequence[str], *choice: str, into: Path) -> Run:
    """The suite as a server, whose address goes to this command."""
    return _suite("client", "--command", " ".join(command), *choice, into=into)


def _suite(mode: str, *arguments: str, into: Path) -> Run:
    timeout_ms = str(CASE_TIMEOUT_S * 1000)
    ended = subprocess.run(
        [str(SUITE), mode, *arguments, "--timeout", timeout_ms, "--output-dir", str(into)],
        cwd=ROOT,
        env={**os.environ, "FORCE_COLOR": "0"},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    output = ended.stdout + ended.stderr
    into.parent.mkdir(parents=True, exist_ok=True)
    (into.parent / f"{into.name}.txt").write_text(output)
    return Run(status=ended.returncode, output=output, scenarios=dict(_read(mode, into)))


def _read(mode: str, results: Path) -> Iterator[tuple[str, dict[str, Found]]]:
    if not results.exists():
        return
    for folder in sorted(results.rglob("checks.json")):
        name = _STAMP.sub("", folder.parent.relative_to(results).as_posix())
        checks = msgspec.json.decode(folder.read_bytes(), type=list[Check])
        yield name.removeprefix(f"{mode}-"), worst(checks)


def worst(checks: Sequence[Check]) -> dict[str, Found]:
    """By id, since an id comes as often as what it checks."""
    found: dict[str, Found] = {}
    for check in checks:
        known = found.get(check.id)
        if known is None or _WORSE.index(check.status) > _WORSE.index(known.status):
            found[check.id] = Found(status=check.status, why=check.errorMessage)
    return found
