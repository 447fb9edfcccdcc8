"""What an agent carries while its call waits opens for that agent, that purpose and that time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from services.common.ids import AgentId, ServerSlug, SessionId, TenantId
from services.proxy import snapshot
from services.proxy.calls import Caller, Visit
from services.proxy.continuing import Carried, Posed, Relayed, Round, Shown, Task
from services.proxy.seals import Seals, Unsealed
from services.proxy.sessions import Session
from tests.fakes.clock import ManualClock

KEY = bytes(range(32))
MINUTE_MS = 60_000
SESSION = Session("s-1", "2025-11-25", 0)


def visit(**changes: str) -> Visit:
    names = {"tenant": "t", "agent": "a", "slug": "notes", "cls": "default", **changes}
    caller = Caller(
        tenant=TenantId(names["tenant"]),
        agent=AgentId(names["agent"]),
        session=SessionId("s"),
        issued_at_s=0,
        expires_at_s=0,
        audiences=frozenset(),
    )
    return Visit(
        caller=caller,
        tenant=snapshot.Tenant(slug="t", status="active"),
        agent=snapshot.Agent(name="a", status="active", cls=names["cls"]),
        slug=ServerSlug(names["slug"]),
        server=snapshot.Server(id="1", domain="d", transport="http"),
        revision="1",
        client_ip="",
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def carried(clock: ManualClock) -> Carried:
    return Carried(Seals([KEY], clock), clock)


def state(carried: Carried, minutes: int = 30) -> Round:
    return Round("tools/call", "write", "h1:x", 1, "e-1", carried.now_ms() + minutes * MINUTE_MS)


def test_a_state_opens_for_its_holder_until_its_time_is_over(
    carried: Carried, clock: ManualClock
) -> None:
    content = state(carried)
    sealed = carried.seal_state(visit(), content)
    another_key = Carried(Seals([bytes(32), KEY], clock), clock)

    assert content == carried.open_state(visit(), sealed) == another_key.open_state(visit(), sealed)
    clock.advance(31 * 60)
    with pytest.raises(Unsealed):
        carried.open_state(visit(), sealed)


def test_seven_days_to_decide_are_seven_days(carried: Carried, clock: ManualClock) -> None:
    content = state(carried, 7 * 24 * 60)
    sealed = carried.seal_state(visit(), content)
    clock.advance(7 * 86_400 - 60)

    assert content == carried.open_state(visit(), sealed)


@pytest.mark.parametrize("member", ["tenant", "agent", "slug", "cls"])
def test_nobody_else_opens_it(carried: Carried, member: str) -> None:
    sealed = carried.seal_state(visit(), state(carried))

    with pytest.raises(Unsealed):
        carried.open_state(visit(**{member: "other"}), sealed)


def test_a_value_of_one_purpose_is_none_of_another(carried: Carried) -> None:
    sealed = carried.seal_state(visit(), state(carried))
    task = carried.seal_task(
        visit(), Task("r", "write", "h1:x", "approval", "e-1", 0, carried.now_ms() + MINUTE_MS)
    )
    shown = carried.seal_shown(visit(), SESSION, "e-1")

    for open_, value in (
        (carried.open_state, task),
        (carried.open_state, shown),
        (carried.open_task, sealed),
        (carried.open_task, shown),
    ):
        with pytest.raises(Unsealed):
            open_(visit(), value)


def test_states_of_tool_servers_and_of_approvals_are_never_taken_for_each_other(
    carried: Carried,
) -> None:
    until_ms = carried.now_ms() + MINUTE_MS
    relayed = Relayed("tools/call", "write", "h1:x", 1, "e-1", until_ms)
    approval = Round("tools/call", "write", "h1:x", 1, "e-1", until_ms)

    assert relayed == carried.open_state(visit(), carried.seal_state(visit(), relayed))
    assert approval == carried.open_state(visit(), carried.seal_state(visit(), approval))
    posed = carried.seal_posed(visit(), SESSION, "k" * 32, "h" * 32)
    assert len(posed) <= 256
    assert isinstance(carried.open_request(visit(), SESSION, posed), Posed)


def test_a_state_holds_a_tool_servers_own(carried: Carried) -> None:
    content = Relayed("tools/call", "w", "h1:x", 1, "s" * 32_000, carried.now_ms() + MINUTE_MS)

    assert content == carried.open_state(visit(), carried.seal_state(visit(), content))
    with pytest.raises(Unsealed):
        carried.open_task(visit(), carried.seal_state(visit(), content))


def escalation_of(opened: Shown | Posed) -> str:
    assert isinstance(opened, Shown)
    return opened.escalation


def test_the_id_of_a_request_belongs_to_its_session(carried: Carried, clock: ManualClock) -> None:
    shown = carried.seal_shown(visit(), SESSION, "e-1")

    assert "e-1" == escalation_of(carried.open_request(visit(), SESSION, shown))
    assert len(shown) <= 256  # the longest id of a message
    with pytest.raises(Unsealed):
        carried.open_request(visit(), Session("s-2", "2025-11-25", 0), shown)
    clock.advance(3601)
    with pytest.raises(Unsealed):
        carried.open_request(visit(), SESSION, shown)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=400))
def test_no_text_is_a_state(text: str) -> None:
    clock = ManualClock()
    carried = Carried(Seals([KEY], clock), clock)

    with pytest.raises(Unsealed):
        carried.open_state(visit(), text)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10_000), char=st.characters(max_codepoint=255))
def test_a_state_with_one_character_changed_is_none(at: int, char: str) -> None:
    clock = ManualClock()
    carried = Carried(Seals([KEY], clock), clock)
    sealed = carried.seal_state(visit(), state(carried))
    at %= len(sealed)
    changed = sealed[:at] + char + sealed[at + 1 :]

    if changed == sealed:
        assert state(carried) == carried.open_state(visit(), changed)
        return
    with pytest.raises(Unsealed):
        carried.open_state(visit(), changed)


def test_another_tenants_visit_is_another_visit() -> None:
    """The values above differ in what they are sealed for, not by accident."""
    mine = visit()

    assert mine != visit(agent="other")
    assert mine == replace(mine)
