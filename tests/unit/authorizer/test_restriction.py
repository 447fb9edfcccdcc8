"""Restricted mode: each part of a restriction lets its twin through; the first failure denies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.authorizer import asks, restriction
from services.authorizer.asks import Ask
from services.authorizer.decision import Admitted, Verdict
from services.authorizer.plane_state import Restriction, Server
from tests.fakes import asks as asked
from tests.unit.authorizer.test_decision import (
    AGENT,
    NOW_S,
    SERVER,
    SESSION,
    agent,
    decided,
    reason_of,
    tenant,
)

UNTIL_S = NOW_S + 1


def held(profile: str = "custom", **parts: Any) -> Restriction:
    return Restriction(profile=profile, until_s=UNTIL_S, **parts)  # type: ignore[arg-type]  # tests go through all of them


def question(
    *, paths: tuple[str, ...] = (), features: dict[str, Any] | None = None, **changes: Any
) -> Ask:
    found = [
        {"value": path, "depth": 1, "config": False, "protected": False, "ambiguous": False}
        for path in paths
    ]
    named = {"resource": paths[0], "resource_kind": "path"} if paths else {}
    wire = asked.ask(
        features={**asked.FEATURES, "paths": found, **(features or {})}, **{**named, **changes}
    )
    return asks.decode(wire.request, wire.features, wire.findings, wire.arguments_json)


def why(one: Restriction, ask: Ask, action: str = "read", server: Server = SERVER) -> str:
    return restriction.refusal(one, ask, server, action)


@pytest.mark.parametrize("profile", ["read_only", "investigation", "wind_down"])
@pytest.mark.parametrize(
    "action", ["read", "write", "delete", "execute", "network", "admin", "unclassified"]
)
def test_three_profiles_leave_reading_alone(profile: str, action: str) -> None:
    assert (action != "read") == bool(why(held(profile), question(), action))
    assert "" == why(held("custom"), question(), action)


@pytest.mark.parametrize(
    ("globs", "allowed"),
    [
        (None, True),
        ((), False),
        (("files/read_file",), True),
        (("files/read_*",), True),
        (("*/read_file",), True),
        (("mail/read_file", "files/read_file"), True),
        (("files/*",), True),
        (("mail/*",), False),
        (("files/write_*",), False),
        (("files/READ_FILE",), False),
        (("files",), False),
        (("*",), False),
        (("read_file",), False),
        (("file*read_file",), False),
    ],
)
def test_only_listed_tools_are_allowed(globs: tuple[str, ...] | None, allowed: bool) -> None:
    assert allowed == (not why(held(tools=globs), question()))


def test_a_star_does_not_reach_from_the_server_into_the_tool() -> None:
    evil = question(server="evil", tool="x/read_file")

    assert why(held(tools=("*il/read_file",)), evil)
    assert why(held(tools=("evil/read_file",)), evil)
    assert not why(held(tools=("evil/x/read_file",)), evil)


def test_what_is_no_tool_is_listed_by_its_method() -> None:
    reading = question(method="resources/read", tool="", schema_hash=None)

    assert not why(held(tools=("files/resources/read",)), reading)
    assert why(held(tools=("files/read_*",)), reading)


@pytest.mark.parametrize(
    ("paths", "prefixes", "allowed"),
    [
        (("/srv/data/a",), None, True),
        (("/srv/data/a",), (), False),
        (("/srv/data/a",), ("/srv/data",), True),
        (("/srv/data",), ("/srv/data",), True),
        (("/srv/data",), ("/srv/data/",), True),
        (("/srv/database",), ("/srv/data",), False),
        (("/srv/data/a", "/srv/data/b"), ("/srv/data",), True),
        (("/srv/data/a", "/etc/passwd"), ("/srv/data",), False),
        (("/srv/data/a", "/tmp/b"), ("/srv/data", "/tmp"), True),
        (("srv/data/a",), ("/srv/data",), False),
        (("/anything",), ("/",), True),
        (("anything",), ("/",), False),
        (("/srv/data/a",), ("",), False),
        ((), ("/srv/data",), False),
        ((), None, True),
    ],
)
def test_every_target_lies_under_a_prefix(
    paths: tuple[str, ...], prefixes: tuple[str, ...] | None, allowed: bool
) -> None:
    assert allowed == (not why(held(resources=prefixes), question(paths=paths)))


URL = {"scheme": "https", "host": "api.example.com", "port": 443, "private": False}
AMBIGUOUS = {"value": "/srv/$X", "depth": 2, "config": False, "protected": False, "ambiguous": True}


@pytest.mark.parametrize(
    ("features", "prefix", "allowed"),
    [
        ({"urls": [URL]}, "https://api.example.com:443", True),
        ({"urls": [URL]}, "https://api.example.com:44", False),
        ({"urls": [URL]}, "https://api.example.com", False),
        ({"tables": ["crm"]}, "crm", True),
        ({"tables": ["crm"]}, "cr", False),
        ({"tables": ["crm", "pay"]}, "crm", False),
        ({"commands": ["rm"]}, "/srv", False),
        ({"paths": [AMBIGUOUS]}, "/srv", False),
        ({"tables": ["crm"], "overflow": True}, "crm", False),
        ({"tables": ["crm"], "recipient_count": 2}, "crm", False),
    ],
)
def test_targets_of_every_kind_count_and_what_cannot_be_seen_is_outside(
    features: dict[str, Any], prefix: str, allowed: bool
) -> None:
    assert allowed == (not why(held(resources=(prefix,)), question(features=features)))


def test_the_one_named_recipient_is_a_target() -> None:
    to = question(
        resource="a@b.example", resource_kind="recipient", features={"recipient_count": 1}
    )

    assert not why(held(resources=("a@b.example",)), to)
    assert why(held(resources=("b@b.example",)), to)


def test_a_server_without_case_compares_without_case() -> None:
    folded = Server(id="x", domain="filesystem", transport="http", case_fold=True)
    ask = question(paths=("/srv/data/a",))

    assert not why(held(resources=("/SRV/Data",)), ask, server=folded)
    assert why(held(resources=("/SRV/Data",)), ask)


@pytest.mark.parametrize(("limit", "allowed"), [(None, True), (16, True), (15, False), (0, False)])
def test_arguments_have_a_size(limit: int | None, allowed: bool) -> None:
    assert allowed == (not why(held(max_arg_bytes=limit), question()))


segments = st.lists(
    st.text(st.sampled_from("ab.*é "), min_size=1, max_size=3), min_size=0, max_size=4
)


@given(segments, segments)
def test_under_is_what_a_tree_of_segments_says(prefix: list[str], target: list[str]) -> None:
    said = restriction.under("/" + "/".join(target), "/" + "/".join(prefix))

    assert (target[: len(prefix)] == prefix) == said


@given(st.text(st.sampled_from("ab/"), max_size=8), st.text(st.sampled_from("ab/"), max_size=6))
def test_under_never_lets_through_what_does_not_begin_with_the_prefix(
    target: str, prefix: str
) -> None:
    if restriction.under(target, prefix):
        root = prefix.rstrip("/")
        assert prefix
        assert target.startswith(root)
        assert target[len(root) : len(root) + 1] in {"", "/"}


@given(
    st.text(st.sampled_from("ab/"), min_size=1, max_size=8),
    st.text(st.sampled_from("ab/"), min_size=1, max_size=6),
    st.text(st.sampled_from("ab/"), min_size=1, max_size=3),
)
def test_a_longer_prefix_never_allows_more(target: str, prefix: str, more: str) -> None:
    if restriction.under(target, f"{prefix.rstrip('/')}/{more}"):
        assert restriction.under(target, prefix) or not prefix.rstrip("/")


@pytest.mark.parametrize("profile", ["read_only", "investigation", "custom"])
def test_a_restriction_ends_at_its_time(profile: str) -> None:
    one = held(profile, tools=())
    restricted = tenant(agents={AGENT: agent(restriction=one)})

    assert "restricted" == reason_of(decided(restricted, now_s=UNTIL_S - 1))
    assert "admitted" == reason_of(decided(restricted, now_s=UNTIL_S))


def test_a_wind_down_lets_read_until_its_time_and_is_a_suspension_after() -> None:
    restricted = tenant(agents={AGENT: agent(restriction=held("wind_down"))})

    assert "admitted" == reason_of(decided(restricted, now_s=UNTIL_S - 1))
    assert "agent_suspended" == reason_of(decided(restricted, now_s=UNTIL_S))


def test_a_session_is_held_beside_its_agent_and_ends_by_itself() -> None:
    loose = tenant(agents={AGENT: agent(restriction=held("read_only"))})
    tight = tenant(
        agents={AGENT: agent(restriction=held("read_only"))},
        restricted_sessions={SESSION: held(tools=())},
    )
    wound = tenant(restricted_sessions={SESSION: held("wind_down")})
    other = tenant(restricted_sessions={"another": held(tools=())})

    assert "admitted" == reason_of(decided(loose))
    assert "restricted" == reason_of(decided(tight))
    assert "session_revoked" == reason_of(decided(wound, now_s=UNTIL_S))
    assert "admitted" == reason_of(decided(other))


def test_the_refusal_says_in_words_what_is_missing_and_lists_every_code() -> None:
    verdict = decided(
        tenant(agents={AGENT: agent(restriction=held(max_arg_bytes=1))}), ask=question()
    )
    scanned = asked.ask(findings={**asked.FINDINGS, "scan": "complete"})
    both = decided(
        tenant(agents={AGENT: agent(restriction=held(max_arg_bytes=1))}),
        ask=asks.decode(
            scanned.request, scanned.features, scanned.findings, scanned.arguments_json
        ),
    )

    assert isinstance(verdict, Verdict)
    assert isinstance(both, Verdict)
    assert ("restricted", "restricted: the arguments are too large", ("restricted",)) == (
        verdict.reason_code,
        verdict.reason,
        verdict.codes,
    )
    assert "read" == verdict.action
    assert ("scan_failed", ("scan_failed", "restricted")) == (both.reason_code, both.codes)


def test_the_envelope_names_the_profile_that_holds_the_agents_first() -> None:
    def profile(**changes: Any) -> str:
        outcome = decided(tenant(**changes))
        assert isinstance(outcome, Admitted)
        return outcome.restriction

    read_only = {AGENT: agent(restriction=held("read_only"))}
    session = {SESSION: held("investigation")}

    assert "" == profile()
    assert "read_only" == profile(agents=read_only)
    assert "investigation" == profile(restricted_sessions=session)
    assert "read_only" == profile(agents=read_only, restricted_sessions=session)


@pytest.mark.parametrize(
    ("profile", "own", "left"),
    [
        ("custom", 1000, 1000),
        ("custom", 250, 250),
        ("read_only", 1000, 1000),
        ("investigation", 1000, 500),
        ("investigation", 400, 200),
        ("investigation", 1, 1),
    ],
)
def test_what_is_left_of_the_rate(profile: str, own: int, left: int) -> None:
    assert left == restriction.rate_milli(held(profile, rate_factor_milli=own))
