"""No route ignores what stands behind its `?`: what it does not take is refused, told by its place
and with those that there are. The routes come from the published description.
"""

from __future__ import annotations

from typing import Any, Final

from tests.integration.control.conftest import Rest
from tests.integration.control.people import entitle, operator
from tests.integration.control.test_problems import GONE, OWN_FORM, PLANTED, check, operations
from tests.promises import promise

#: Their protocols say that what others add is ignored (RFC 6749 3.1, 3.2, 4.1.2; RFC 8628), and
#: probes have no words.
OTHERS_ADD: Final = OWN_FORM | {"/api/v1/auth/callback"}


async def declared(rest: Rest) -> dict[tuple[str, str], list[str]]:
    """The query parameters of each operation, by method and path."""
    paths: dict[str, dict[str, Any]] = (await rest.get("/openapi.json", key=None)).json["paths"]
    return {
        (method.upper(), path): [
            parameter["name"]
            for parameter in described.get("parameters", ())
            if parameter["in"] == "query"
        ]
        for path, methods in paths.items()
        for method, described in methods.items()
    }


@promise("api:refusals-are-problems")
async def test_every_route_refuses_a_parameter_that_it_does_not_take(rest: Rest) -> None:
    entitle(rest)
    taken, person = await declared(rest), (await operator(rest)).token
    for one in await operations(rest):
        names = taken[one.method, one.path]
        if one.path in OTHERS_ADD or one.path == "/api/v1/policy/bundle":
            continue
        who = None if one.role is None else person
        before = f"{names[0]}=&" if names else ""
        answer = await rest.call(
            one.method, f"{one.url()}?{before}{PLANTED}=1", headers=one.headers(), key=who
        )
        check(answer, 400, "invalid_filter")
        assert {"pointer": "?", "code": "unknown_field"} in answer.json["errors"], one.name
        assert f"parameter {1 + bool(names)} " in answer.json["detail"], one.name
        assert all(name in answer.json["detail"] for name in names), one.name


async def test_those_that_a_route_takes_are_no_reason_to_refuse(rest: Rest) -> None:
    """The innocent twin: of each list its own, and of each other route none."""
    entitle(rest)
    person = (await operator(rest)).token
    good = {"page_size": "5", "page_token": "", "filter": "", "tenant": "default",
            "return_to": "/", "step_up": "false", "test": ""}  # fmt: skip
    for (method, path), names in (await declared(rest)).items():
        if not names:
            continue
        query = "&".join(f"{name}={good[name]}" for name in names)
        url = path.replace("{tenant_id}", rest.running.tenant.id).replace("{server}", "time")
        answer = await rest.call(
            method, f"{url.replace('{destination_id}', GONE)}?{query}", key=person,
            headers={"x-behavry-reason": "a test goes everywhere"},
            sees_neighbour=path == "/api/v1/tenants",
        )  # fmt: skip
        assert "invalid_filter" not in answer.body.decode(), path
        assert answer.status != 400, path


async def test_who_may_not_come_in_hears_nothing_of_parameters(rest: Rest) -> None:
    for one in await operations(rest):
        if one.role is not None or one.path == "/api/v1/policy/bundle":
            answer = await rest.call(
                one.method, f"{one.url()}?{PLANTED}=1", headers=one.headers(), key=None
            )
            check(answer, 401, "unauthenticated")


async def test_what_others_add_to_an_address_is_ignored_where_their_protocol_says_so(
    rest: Rest,
) -> None:
    for path in ("/healthz", "/readyz"):
        assert 204 == (await rest.get(f"{path}?{PLANTED}=1", key=None)).status
    form = {"grant_type": "client_credentials", "client_id": GONE, "client_secret": "x"}
    answer = await rest.call("POST", f"/api/v1/auth/token?{PLANTED}=1", data=form, key=None)

    assert (401, "invalid_client") == (answer.status, answer.json["error"])
    page = await rest.get(f"/device?{PLANTED}=1", key=None)
    assert 200 == page.status


async def test_a_refused_query_does_nothing_and_gives_its_idempotency_key_back(rest: Rest) -> None:
    headers = {"idempotency-key": "once"}
    path, body = "/api/v1/agents", {"name": "one"}
    check(await rest.post(f"{path}?{PLANTED}=1", body, headers=headers), 400, "invalid_filter")
    nothing = (await rest.get(path)).json["items"]
    made = await rest.post(path, body, headers=headers)

    assert ([], 201) == (nothing, made.status)
