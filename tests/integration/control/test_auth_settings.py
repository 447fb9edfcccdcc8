"""How people sign in is changed by two: who proposes it, and who runs the installation."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.escalated import Somebody, joined
from tests.integration.control.people import TENANTS, WHY, operator
from tests.integration.control.test_problems import check
from tests.promises import promise

PATH: Final = "/api/v1/settings/auth"
OIDC: Final[dict[str, Any]] = {
    "provider": "oidc",
    "oidc": {
        "issuer": "https://login.example",
        "client_id": "behavry",
        "client_secret": "secret://oidc",
        "roles": [{"value": "staff", "role": "analyst"}],
        "role_claim": "groups",
    },
}


async def put(rest: Rest, who: Somebody, body: Any = OIDC, revision: int = 0) -> Answered:
    return await rest.put(PATH, body, key=who.token, headers={"if-match": f'"{revision}"'})


async def approve(rest: Rest, who: Somebody, revision: int) -> Answered:
    path = f"{TENANTS}/{rest.running.tenant.id}/auth:approve"
    return await rest.post(path, key=who.token, headers=WHY | {"if-match": f'"{revision}"'})


@promise("people:sign-in-changed-by-two")
async def test_what_an_admin_proposes_waits_for_a_super_admin(rest: Rest) -> None:
    anna, boss = await joined(rest, "anna", "admin"), await operator(rest)
    proposed = await put(rest, anna)
    assert ("password", "oidc") == (
        proposed.json["provider"], proposed.json["proposed"]["provider"]
    )  # fmt: skip
    check(await approve(rest, anna, 1), 403, "role_required")
    check(await approve(rest, boss, 0), 412, "stale_revision")
    assert "password" == (await rest.get(PATH)).json["provider"]
    done = await approve(rest, boss, 1)

    assert (200, "oidc", None) == (done.status, done.json["provider"], done.json["proposed"])
    assert "https://login.example" == (await rest.get(PATH)).json["oidc"]["issuer"]
    recorded = [one["type"] for one in await rest.records() if ".auth." in one["type"]]
    assert ["admin.auth.proposed", "admin.auth.updated"] == recorded
    check(await approve(rest, boss, 2), 404, "not_found")


@promise("people:sign-in-changed-by-two")
async def test_without_a_proof_of_lately_nothing_is_proposed(rest: Rest) -> None:
    anna = await joined(rest, "anna", "admin")
    check(await rest.put(PATH, OIDC, headers={"if-match": '"0"'}), 403, "human_required")
    rest.clock.advance(301)
    check(await put(rest, anna), 403, "step_up_required")
    assert 200 == (await anna.step_up()).status
    check(await rest.put(PATH, OIDC, key=anna.token), 428, "precondition_required")

    assert 200 == (await put(rest, anna)).status


@pytest.mark.parametrize(
    "bent",
    [{"issuer": "http://login.example"}, {"issuer": "https://a.example/?x"},
     {"client_secret": "hunter2-hunter2"}, {"scopes": "openid"},
     {"roles": [{"value": "x", "role": "super_admin"}]}, {"unknown": 1}],
)  # fmt: skip
async def test_settings_that_cannot_be_meant_are_refused(rest: Rest, bent: dict[str, Any]) -> None:
    anna = await joined(rest, "anna", "admin")
    answer = await put(rest, anna, {"provider": "oidc", "oidc": OIDC["oidc"] | bent})
    check(answer, 422, "validation_failed")
    assert "hunter2" not in answer.body.decode()
    for provider in ({"provider": "oidc"}, {"provider": "password", "oidc": OIDC["oidc"]}):
        check(await put(rest, anna, provider), 422, "validation_failed")

    assert None is (await rest.get(PATH)).json["proposed"]
