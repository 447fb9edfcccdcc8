"""The conformance gate (mcp.md 14): what works directly works through the gateway.

Runs the protocol's own suite against our fixture, then the same through the shim and the whole
installation, and compares check by check. Prints a table; exit status 1 says that something is
lost, that a list of expected failures is out of date, or that a governed request left no record.

    python -m tests.conformance.gate [--only PART] [--report FILE] [--keep DIR]
    python -m tests.conformance.gate --scenario NAME --revision 2026-07-28
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from tests.conformance.installed import CROSS_ERA, SAME_ERA, Installed, Leg, installed, serving
from tests.conformance.suite import (
    EITHER_WAY,
    SCORED,
    SUITE,
    Loss,
    Run,
    against,
    client_suite,
    expected,
    losses,
    server_suite,
)
from tests.conformance.upstream import Place
from tests.fakes.stack import until
from tests.journeys.agents import register

AT_ONCE: Final = 2
CHAINED_TIMEOUT_S: Final = 20
UPSTREAM: Final = {
    "2025-11-25": (
        "initialize",
        "tools_call",
        "sse-retry",
        "elicitation-sep1034-client-defaults",
        "json-schema-2020-12-preservation",
    ),
    "2026-07-28": (
        "tools_call",
        "request-metadata",
        "sep-2322-client-request-state",
        "http-standard-headers",
        "http-custom-headers",
        "http-invalid-tool-headers",
        "json-schema-ref-no-deref",
        "json-schema-2020-12-preservation",
    ),
}
"""What of the suite's client mode is about tool servers; the rest is about signing in."""

HEADER_CHECKS: Final = 24
HEADER_SCENARIOS: Final = ("http-header-validation", "http-custom-header-server-validation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the table."""

    what: str
    told: str
    good: bool


@dataclass(slots=True)
class Report:
    lines: list[Line] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def say(self, what: str, told: str, *, good: bool) -> None:
        self.lines.append(Line(what=what, told=told, good=good))
        elapsed_s = time.monotonic() - self._began
        print(f"{elapsed_s:4.0f} s {'ok  ' if good else 'LOST'} {what:<48} {told}", flush=True)

    def detail(self, text: str) -> None:
        self.details.append(text)
        print(f"            {text}", flush=True)

    @property
    def good(self) -> bool:
        return all(line.good for line in self.lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The two runs of one leg: what the revision requires, and everything there is."""

    required: Run
    everything: Run


def measure(leg: Leg, url: str, into: Path) -> Suite:
    """Across eras the requirements alone: they are what a baseline of gaps is about."""
    baseline = ("--expected-failures", str(leg.baseline))
    requirements = ("--requirements", leg.revision)
    if leg not in SAME_ERA:
        required = server_suite(url, *requirements, *baseline, into=into / "required")
        return Suite(required=required, everything=required)
    required = server_suite(url, *requirements, into=into / "required")
    choice = ("--suite", "all", "--spec-version", leg.revision)
    everything = server_suite(url, *choice, *baseline, into=into / "all")
    return Suite(required=required, everything=everything)


def directly(scratch: Path, report: Report) -> dict[str, Suite]:
    found: dict[str, Suite] = {}
    with ExitStack() as stack:
        urls = {leg.slug: stack.enter_context(serving(leg.era)) for leg in SAME_ERA}
        for leg, suite in _side_by_side(
            SAME_ERA, lambda leg: measure(leg, urls[leg.slug], scratch / "direct" / leg.slug)
        ):
            found[leg.slug] = suite
            tell(report, f"direct {leg.revision}", leg, suite)
    return found


def tell(report: Report, what: str, leg: Leg, suite: Suite) -> None:
    scored = _scored(suite.required)
    passed = len(scored & suite.required.passed())
    report.say(
        f"{what}, required",
        f"{passed}/{SCORED[leg.revision]} scored scenarios",
        good=suite.required.status == 0 and passed == SCORED[leg.revision],
    )
    _tell_baseline(report, f"{what}, beside {leg.baseline.name}", leg, suite.required)
    report.say(
        f"{what}, all, beside {leg.baseline.name}",
        f"{len(suite.everything.passed())} of {len(suite.everything.ran())} scenarios",
        good=suite.everything.status == 0,
    )
    if leg.revision == "2026-07-28":
        good, total = _header_checks(suite.required)
        report.say(f"{what}, header checks", f"{good}/{total}", good=good == HEADER_CHECKS)


def _tell_baseline(report: Report, what: str, leg: Leg, run: Run) -> None:
    entries = expected(leg.baseline)
    found = against(run, entries)
    report.say(
        what,
        f"{len(entries)} expected, {len(found.unexpected)} not expected, {len(found.stale)} stale",
        good=found.good,
    )
    for one in found.unexpected:
        scenario, _, check = one.partition(":")
        report.detail(f"not expected: {one}: {run.scenarios[scenario][check].why[:300]}")
    for one in found.stale:
        report.detail(f"stale: {one}")


def _scored(run: Run) -> set[str]:
    """What counts: all that ran but what the suite lists as not scored."""
    _, _, apart = run.output.partition("Not scored for")
    unscored = {line.split()[1] for line in apart.splitlines() if line.strip()[:1] in {"✓", "✗"}}
    return run.ran() - unscored


def _header_checks(run: Run) -> tuple[int, int]:
    counts = [run.counts(name) for name in HEADER_SCENARIOS]
    passed = sum(good for good, _ in counts)
    return passed, passed + sum(bad for _, bad in counts)


def compare(report: Report, leg: Leg, direct: Suite, through: Suite) -> None:
    """No check that passes direct fails through."""
    found = sorted(
        {*losses(direct.required, through.required), *losses(direct.everything, through.everything)}
    )
    lost = [loss for loss in found if not loss.allowed]
    checks = sum(len(one) for one in direct.required.scenarios.values())
    what = f"through {leg.revision}, check by check"
    report.say(what, f"{len(lost)} of {checks} lost", good=not lost)
    for loss in lost:
        report.detail(_plain(loss))
    for loss in found:
        if loss.allowed:
            report.detail(f"left, as it may be: {loss.scenario}: {loss.check}: {loss.allowed}")
    for scenario, check in EITHER_WAY:
        before = direct.required.scenarios.get(scenario, {}).get(check)
        after = through.required.scenarios.get(scenario, {}).get(check)
        if before and after and "SUCCESS" == before.status == after.status:
            report.say(what, f"no longer left: {scenario}: {check}", good=False)


def _plain(loss: Loss) -> str:
    return f"{loss.scenario}: {loss.check}: {loss.was} -> {loss.now}: {loss.why[:300]}"


def count(report: Report, place: Installed, leg: Leg) -> None:
    """As many records as governed requests: nothing passes beside the pipeline."""
    sent = place.shim.noted(leg.slug)
    wanted = leg.records(sent)

    def all_there() -> bool:
        found = place.recorded(leg.slug)
        return found.total >= wanted and not found.unended

    try:
        until(all_there, "every record is in the chain", CHAINED_TIMEOUT_S, look_again_s=0.5)
    except TimeoutError:
        report.detail("the chain stays behind")
    found = place.recorded(leg.slug)
    report.say(
        f"through {leg.revision} ({leg.era}), records",
        f"{found.total} of {wanted} for {sum(sent.values())} governed requests, "
        f"{found.unended} without outcome",
        good=found.total == wanted and not found.unended,
    )
    if found.total != wanted:
        report.detail(f"sent {dict(sent)}, recorded {dict(found.decided)}")


def _side_by_side(
    legs: tuple[Leg, ...], run: Callable[[Leg], Suite]
) -> Iterator[tuple[Leg, Suite]]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from zip(legs, pool.map(run, legs), strict=True)


def gate(scratch: Path, only: str | None, report: Report) -> None:
    if only == "upstream":
        with installed(scratch, ()) as place:
            upstreams(report, place, scratch)
        return
    if only == "direct":
        directly(scratch, report)
        return
    legs = {None: SAME_ERA + CROSS_ERA, "through": SAME_ERA, "cells": CROSS_ERA}[only]
    with ThreadPoolExecutor(1) as meanwhile, ExitStack() as stack:
        first = meanwhile.submit(directly, scratch, report)
        place = stack.enter_context(installed(scratch, legs))
        direct = first.result()
        for leg, suite in _side_by_side(
            legs, lambda leg: measure(leg, place.shim.url(leg.slug), scratch / leg.slug)
        ):
            if leg in SAME_ERA:
                tell(report, f"through {leg.revision}", leg, suite)
                compare(report, leg, direct[leg.slug], suite)
            else:
                what = f"{leg.revision} on a {leg.era} server, {leg.baseline.name}"
                _tell_baseline(report, what, leg, suite.required)
        for leg in legs:
            count(report, place, leg)
        if only is None:
            upstreams(report, place, scratch)


def upstreams(report: Report, place: Installed, scratch: Path) -> None:
    """M-UP: the gateway as the client of the suite's own servers."""
    file = scratch / "place.json"
    agent = register(place.stack, "everywhere", "*:*")
    file.write_bytes(msgspec.json.encode(Place(up=place.stack.up, token=agent.token)))
    command = (sys.executable, "-m", "tests.conformance.upstream", str(file))

    def run(one: tuple[str, str]) -> Run:
        revision, name = one
        choice = ("--scenario", name, "--spec-version", revision)
        return client_suite(command, *choice, into=scratch / "upstream" / f"{name}-{revision}")

    wanted = [(revision, name) for revision, names in UPSTREAM.items() for name in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for (revision, name), ended in zip(wanted, pool.map(run, wanted), strict=True):
            checks = [one for found in ended.scenarios.values() for one in found.items()]
            bad = [(check, found) for check, found in checks if not found.good]
            good = ended.status == 0 and bool(checks) and not bad
            passed = sum(found.status == "SUCCESS" for _, found in checks)
            report.say(f"upstream {revision} {name}", f"{passed} checks", good=good)
            for check, found in bad:
                report.detail(f"{check}: {found.status}: {found.why[:300]}")
            if not good and not bad:
                report.detail(ended.output[-600:].replace("\n", " | "))


def single(scratch: Path, scenario: str, revision: str, report: Report) -> None:
    """One scenario, direct and through, with what each check says."""
    (leg,) = (one for one in SAME_ERA if one.revision == revision)
    choice = ("--scenario", scenario, "--spec-version", revision)
    with serving(leg.era) as url:
        direct = server_suite(url, *choice, into=scratch / "direct")
    with installed(scratch, (leg,)) as place:
        through = server_suite(place.shim.url(leg.slug), *choice, into=scratch / "through")
        count(report, place, leg)
    for found in through.scenarios.values():
        for name, one in found.items():
            report.say(name, f"{one.status} {one.why}", good=one.good)
    for loss in losses(direct, through):
        report.detail(f"{_plain(loss)} {loss.allowed}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.conformance.gate")
    parser.add_argument("--only", choices=("direct", "through", "cells", "upstream"))
    parser.add_argument("--scenario", help="this one alone")
    parser.add_argument("--revision", choices=tuple(SCORED), default="2026-07-28")
    parser.add_argument("--report", type=Path, help="the table again, as a file")
    parser.add_argument("--keep", type=Path, help="where the suite's results stay")
    options = parser.parse_args()
    if not SUITE.exists():
        print("the conformance suite is not installed: make tools", file=sys.stderr)
        return 2
    report = Report()
    with tempfile.TemporaryDirectory(prefix="conformance-") as temporary:
        scratch: Path = options.keep or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        if options.scenario:
            single(scratch, options.scenario, options.revision, report)
        else:
            gate(scratch, options.only, report)
    if options.report:
        rows = [f"{'ok' if one.good else 'LOST'} | {one.what} | {one.told}" for one in report.lines]
        options.report.write_text("\n".join([*rows, "", *report.details]) + "\n")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
