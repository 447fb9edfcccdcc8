"""Rules of sessions, audiences, statuses, tools, records and settings as values."""

from datetime import UTC, datetime, timedelta
from importlib.resources import files

import pytest

from behavry.common.v1 import error_reason_pb2
from services.common.errors import BehavryError
from services.common.ids import NIL_TENANT, PlaneId, TenantId
from services.common.outbox.table import table_sql
from services.common.settings import SettingsError, load
from services.control import agents, audit_records, problems, servers, sessions
from services.control.features import Entitlements, FeatureAnswer, Features
from services.control.roles import Role
from services.control.settings import ControlSettings
from services.control.tokens import Audiences, UnknownResource
from tests.fakes.clock import ManualClock

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TENANT = TenantId("0199d0d0-0000-7000-8000-000000000001")
CAME = audit_records.Circumstances(
    actor={"kind": "user", "id": "u"}, route="POST /x", request_id="r", client_ip="::1", now_ns=1000
)


def test_a_session_lives_by_both_clocks() -> None:
    def alive(since_start: float, since_seen: float) -> bool:
        return sessions.alive(
            created_at=NOW - timedelta(minutes=since_start),
            seen_at=NOW - timedelta(minutes=since_seen),
            now=NOW,
        )

    assert alive(0, 0)
    assert alive(719, 29)
    assert not alive(720, 0)
    assert not alive(40, 30)


def test_the_csrf_token_follows_from_the_cookie_and_not_the_reverse() -> None:
    token = sessions.new_token()

    assert sessions.csrf_token(token) == sessions.csrf_token(token)
    assert sessions.csrf_token(token) != sessions.csrf_token(sessions.new_token())
    assert token not in sessions.csrf_token(token)
    assert not sessions.same("", "")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://control.example", True),
        ("https://control.example:443", True),
        ("HTTPS://CONTROL.EXAMPLE", True),
        ("http://control.example", False),
        ("https://control.example:8443", False),
        ("https://control.example.evil.example", False),
        ("https://evil.example/https://control.example", False),
        ("https://control.example@evil.example", False),
        ("null", False),
        ("", False),
        ("https://[", False),
    ],
)
def test_an_origin_is_ours_or_not(origin: str, *, allowed: bool) -> None:
    assert allowed == sessions.Origins("https://control.example").allows(origin)


def test_over_https_the_cookie_is_bound_to_the_host() -> None:
    cookie = sessions.Origins("https://control.example").set_cookie("t")

    assert cookie.startswith("__Host-behavry=t; Path=/;")
    assert "; Secure" in cookie
    assert "Domain" not in cookie


def test_an_audience_is_the_plane_or_one_of_its_endpoints() -> None:
    audiences = Audiences(plane_id=PlaneId("dp-1"), proxy_public_url="https://proxy.example")

    assert "behavry:dp:dp-1" == audiences.of(None)
    endpoint = "https://proxy.example/mcp/v1/time"
    assert endpoint == audiences.of("https://proxy.example:443/mcp/v1/time")
    for bad in ("", "x", "http://proxy.example/mcp/v1/time", "https://proxy.example/mcp/v1/",
                "https://proxy.example/mcp/v1/a/b", "https://proxy.example:1/mcp/v1/a",
                "https://proxy.example/mcp/v1/A", "https://localhost/mcp/v1/a"):  # fmt: skip
        with pytest.raises(UnknownResource):
            audiences.of(bad)


def test_a_revoked_agent_stays_revoked() -> None:
    assert "active" == agents.after("resume", "suspended")
    assert "suspended" == agents.after("suspend", "active")
    for verb in ("resume", "suspend"):
        with pytest.raises(agents.NotAllowedNow):
            agents.after(verb, "revoked")


def test_only_an_approved_tool_changes_by_being_seen() -> None:
    def after(state: str, pinned: str, seen: str) -> str:
        return servers.state_after_sighting(state=state, pinned_hash=pinned, seen_hash=seen)

    assert "approved" == after("approved", "a", "a")
    assert "changed" == after("approved", "a", "b")
    assert "changed" == after("changed", "a", "a")
    assert ["hidden", "unclassified"] == [
        after(state, "a", "b") for state in ("hidden", "unclassified")
    ]


def test_a_record_says_of_a_secret_that_it_was_set() -> None:
    record = audit_records.admin(
        "admin.agent.created",
        TENANT,
        CAME,
        resource="agent",
        resource_id="1",
        changes=[audit_records.change("client_secret", "old", "planted")],
    )

    assert [{"field": "client_secret", "new": "set"}] == record.fields["changes"]
    assert ("admin", 1) == (record.chain, record.at_us)


def test_what_no_tenant_can_be_told_for_goes_to_the_system_chain() -> None:
    record = audit_records.user("user.signin_failed", None, CAME, reason="unauthenticated")

    assert (NIL_TENANT, "system") == (record.tenant, record.chain)


def test_every_code_is_in_the_catalogue_of_reasons() -> None:
    known = error_reason_pb2.DESCRIPTOR.enum_types_by_name["ErrorReason"].values_by_name
    names = {name.removeprefix("ERROR_REASON_").lower() for name in known}

    assert set() == problems.CATALOGUE.keys() - names


def test_a_reason_outside_the_catalogue_tells_nothing_of_itself() -> None:
    error = BehavryError("SOMETHING_NEW", "planted", detail="planted")
    problem = problems.document(error, instance="/x", request_id="r")

    assert (500, "internal") == (problem["status"], problem["code"])
    assert "planted" not in str(problem)


def test_metadata_cannot_replace_what_a_problem_says() -> None:
    error = BehavryError("NOT_FOUND", "no", status="UNAVAILABLE", code="x", request_id="y")
    problem = problems.document(error, instance="/x", request_id="r")

    assert (404, "not_found", "r") == (problem["status"], problem["code"], problem["request_id"])


def test_roles_are_levels() -> None:
    assert ["viewer", "analyst", "policy_author", "admin"] == [role.key for role in sorted(Role)]
    assert Role.ADMIN is Role.of("admin")


def test_features_tell_when_they_change_and_when_they_grow_old() -> None:
    clock = ManualClock()
    features, heard = Features(clock), list[str]()
    features.listen(heard.append)
    answer = FeatureAnswer(
        key="saml_sso", allowed=False, mode="off", source="plan", required_plan="enterprise"
    )
    held = Entitlements(
        tenant=TENANT, plan="trial", status="ACTIVE", plan_expires_at_s=None, revision=1,
        features=(answer,),
    )  # fmt: skip
    stale = [features.stale]
    features.update(held)
    features.update(held)
    stale.append(features.stale)
    clock.advance(61)
    stale.append(features.stale)

    assert [TENANT] == heard
    assert {"saml_sso": "off"} == held.modes()
    assert [True, False, True] == stale
    assert held == features.of(TENANT)


def made(**env: str) -> ControlSettings:
    url = "postgresql://behavry_control@/behavry?host=/run"
    return load(ControlSettings, {"BEHAVRY_CONTROL_DB_URL": url, **env})


@pytest.mark.parametrize(
    "env",
    [
        {"BEHAVRY_CONTROL_PUBLIC_URL": "http://control.example"},
        {"BEHAVRY_CONTROL_HTTP_LISTEN": "0.0.0.0:8701"},
        {"BEHAVRY_CONTROL_PUBLIC_URL": "https://control.example/path"},
        {"BEHAVRY_CONTROL_PUBLIC_URL": "control.example"},
    ],
)
def test_plain_http_beyond_loopback_does_not_start(env: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        made(**env)


def test_behind_an_https_address_any_interface_will_do() -> None:
    settings = made(
        BEHAVRY_CONTROL_PUBLIC_URL="https://control.example",
        BEHAVRY_CONTROL_HTTP_LISTEN="0.0.0.0:8701",
    )
    assert settings.secure
    assert not made().secure


def test_the_outbox_table_is_the_plumbings_own() -> None:
    ours = files("services.control").joinpath("migrations", "0003_outbox.sql").read_text()

    assert table_sql() == ours
