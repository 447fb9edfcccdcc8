"""Whose held calls ask again when a newer bundle is active."""

from __future__ import annotations

from typing import Any

import pytest

from services.authorizer.decide_streams import RightsEnded
from services.authorizer.plane_state import Agent, Plane, PlaneState, Tenant
from services.authorizer.rights import ended


def agent(status: Any = "active") -> Agent:
    return Agent(name="a", type="service", cls="default", status=status)


def state(**tenants: Tenant) -> PlaneState:
    return PlaneState(plane=Plane(id="dp", environment="test"), serial=1, tenants=tenants)


def tenant(status: Any = "active", revoked: tuple[str, ...] = (), **agents: Agent) -> Tenant:
    return Tenant(
        slug="acme",
        status=status,
        policy_revision="sha256:1",
        agents=agents,
        revoked_sessions=dict.fromkeys(revoked, 1),
    )


BEFORE = state(t=tenant(revoked=("old",), a=agent(), b=agent("suspended")), u=tenant(c=agent()))


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (BEFORE, []),
        (
            state(
                t=tenant(revoked=("old",), a=agent(), b=agent(), d=agent()), u=BEFORE.tenants["u"]
            ),
            [],
        ),
        (
            state(t=tenant(a=agent("suspended"), b=agent("revoked")), u=BEFORE.tenants["u"]),
            [RightsEnded(tenant="t", agents=("a",))],
        ),
        (
            state(t=tenant(b=agent("suspended")), u=BEFORE.tenants["u"]),
            [RightsEnded(tenant="t", agents=("a",))],
        ),
        (
            state(t=tenant(revoked=("old", "new"), a=agent()), u=BEFORE.tenants["u"]),
            [RightsEnded(tenant="t", sessions=("new",))],
        ),
        (state(t=BEFORE.tenants["t"]), [RightsEnded(tenant="u")]),
        (
            state(t=BEFORE.tenants["t"], u=tenant("suspended", c=agent())),
            [RightsEnded(tenant="u")],
        ),
    ],
)
def test_only_those_are_named_whose_rights_were_there_before(
    now: PlaneState, expected: list[RightsEnded]
) -> None:
    assert expected == ended(BEFORE, now)
