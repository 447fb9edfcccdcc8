"""The life of a policy over REST: saved with its checks, tried, enforced, observed, taken back."""

from typing import Any, Final
from uuid import uuid4

import pytest

from services.common.rego.names import policy_package
from tests.integration.control.conftest import Rest

PATH: Final = "/api/v1/policies"
GONE: Final = f"{PATH}/00000000-0000-7000-8000-000000000000"
DENIES_RM: Final = [
    {"name": "rm is denied", "input": {"request": {"tool": "rm"}}, "expect": "deny"},
    {"name": "ls is not its business", "input": {"request": {"tool": "ls"}}, "expect": "none"},
]

pytestmark = pytest.mark.needs_regorus


def source(rest: Rest, key: str = "guard", *, tool: str = "rm", result: str = "deny") -> str:
    return (
        f"package {policy_package(rest.running.tenant.id, key)}\n\nimport rego.v1\n\n"
        f'verdicts contains {{"result": "{result}", "code": "hit", "reason": "r",'
        f' "obligations": []}} if input.request.tool == "{tool}"\n'
    )


async def save(rest: Rest, key: str = "guard", *, tests: Any = None, **about: Any) -> Any:
    """(policy, its tag)"""
    cases = DENIES_RM if tests is None else tests
    body = {"key": key, "source": source(rest, key, **about), "tests": cases}
    answer = await rest.post(PATH, body)
    assert 201 == answer.status, answer.body
    return answer.json, answer.headers["etag"]


def fresh_key() -> dict[str, str]:
    return {"idempotency-key": str(uuid4())}


async def step(rest: Rest, policy: dict[str, Any], verb: str, json: Any = None) -> Any:
    answer = await rest.post(f"{PATH}/{policy['id']}:{verb}", json, headers=fresh_key())
    assert 200 == answer.status, answer.body
    return answer.json


def standing(policy: dict[str, Any]) -> tuple[str, int, int | None]:
    return policy["state"], policy["latest_version"], policy["active_version"]


async def test_a_saved_policy_is_a_draft_that_decides_nothing(rest: Rest) -> None:
    policy, tag = await save(rest)
    read = await rest.get(f"{PATH}/{policy['id']}")

    assert ("draft", 1, None) == standing(policy)
    assert (policy, tag) == (read.json, read.headers["etag"])
    assert source(rest) == read.json["source"]
    assert DENIES_RM == read.json["tests"]
    [record] = [r for r in await rest.records() if r["type"] == "admin.policy.created"]
    assert policy["id"] == record["resource_id"]


async def test_a_key_is_used_once(rest: Rest) -> None:
    await save(rest)
    answer = await rest.post(PATH, {"key": "guard", "source": source(rest)})

    assert (409, "conflict") == (answer.status, answer.json["code"])


@pytest.mark.parametrize(
    ("written", "rule", "line"),
    [
        ("verdicts contains )", "syntax", 5),
        ('verdicts contains {"result": "deny"} if http.send({"url": "http://x"})', "builtin", 5),
        ("verdicts contains 1 if input.no.such.path == 1", "input", 5),
    ],
)
async def test_what_does_not_pass_is_refused_with_its_place(
    rest: Rest, written: str, rule: str, line: int
) -> None:
    text = f"package {policy_package(rest.running.tenant.id, 'guard')}\n\nimport rego.v1\n\n"
    answer = await rest.post(PATH, {"key": "guard", "source": f"{text}{written}\n"})

    assert (422, "policy_rejected") == (answer.status, answer.json["code"])
    assert [{"pointer": "/source", "code": answer.json["rule"]}] == answer.json["errors"]
    assert rule in answer.json["rule"]
    assert line == int(answer.json["line"])
    assert int(answer.json["column"]) >= 1
    assert [] == (await rest.get(PATH)).json["items"]


async def test_another_policys_package_is_refused(rest: Rest) -> None:
    answer = await rest.post(PATH, {"key": "guard", "source": source(rest, "other")})

    assert (422, "package") == (answer.status, answer.json["rule"])


async def test_a_test_case_that_comes_out_differently_is_named(rest: Rest) -> None:
    wrong = {"name": "rm runs", "input": {"request": {"tool": "rm"}}, "expect": "allow"}
    body = {"key": "guard", "source": source(rest), "tests": [*DENIES_RM, wrong]}
    answer = await rest.post(PATH, body)

    assert (422, "policy_rejected") == (answer.status, answer.json["code"])
    assert [{"pointer": "/tests/2/expect", "code": "deny"}] == answer.json["errors"]
    assert [] == (await rest.get(PATH)).json["items"]


async def test_a_check_says_what_saving_would_and_saves_nothing(rest: Rest) -> None:
    body = {"key": "guard", "source": source(rest), "tests": DENIES_RM}
    good = await rest.post(f"{PATH}:check", body)
    bad = await rest.post(f"{PATH}:check", {**body, "source": "package x"})

    assert (200, 2, ["input.request.tool"]) == (
        good.status, good.json["tests_passed"], good.json["reads"],
    )  # fmt: skip
    assert (422, "policy_rejected") == (bad.status, bad.json["code"])
    assert [] == (await rest.get(PATH)).json["items"]


async def test_enforcing_needs_a_test_case(rest: Rest) -> None:
    untested, _ = await save(rest, "untested", tests=[])
    answer = await rest.post(f"{PATH}/{untested['id']}:enforce", headers=fresh_key())
    tested, _ = await save(rest, "tested")

    assert (409, "conflict") == (answer.status, answer.json["code"])
    assert ("enforce", 1, 1) == standing(await step(rest, tested, "enforce"))


async def test_a_new_version_decides_only_once_it_is_enforced(rest: Rest) -> None:
    policy, _ = await save(rest)
    await step(rest, policy, "enforce")
    path = f"{PATH}/{policy['id']}"
    tag = (await rest.get(path)).headers["etag"]
    body = {"source": source(rest, result="intercept"), "tests": []}
    saved = await rest.put(path, body, headers={"if-match": tag})

    assert (200, ("enforce", 2, 1)) == (saved.status, standing(saved.json))
    untested = await rest.post(f"{path}:enforce", headers=fresh_key())
    assert 409 == untested.status

    tests = [{"name": "rm asks", "input": {"request": {"tool": "rm"}}, "expect": "intercept"}]
    again = await rest.put(
        path, {**body, "tests": tests}, headers={"if-match": saved.headers["etag"]}
    )
    assert ("enforce", 3, 1) == standing(again.json)
    assert ("enforce", 3, 3) == standing(await step(rest, policy, "enforce"))


async def test_a_save_names_the_version_it_was_made_from(rest: Rest) -> None:
    policy, tag = await save(rest)
    path, body = f"{PATH}/{policy['id']}", {"source": source(rest), "tests": DENIES_RM}
    missing = await rest.put(path, body)
    first = await rest.put(path, body, headers={"if-match": tag})
    stale = await rest.put(path, body, headers={"if-match": tag})

    assert (428, "precondition_required") == (missing.status, missing.json["code"])
    assert 200 == first.status
    assert (412, "stale_revision") == (stale.status, stale.json["code"])
    assert first.headers["etag"] == stale.headers["etag"]
    assert 2 == (await rest.get(path)).json["latest_version"]


async def test_a_bad_version_leaves_the_good_one(rest: Rest) -> None:
    policy, tag = await save(rest)
    path = f"{PATH}/{policy['id']}"
    bad = await rest.put(path, {"source": "package x", "tests": []}, headers={"if-match": tag})

    assert (422, "policy_rejected") == (bad.status, bad.json["code"])
    assert tag == (await rest.get(path)).headers["etag"]


async def test_a_policy_is_observed_before_it_is_enforced_and_not_after(rest: Rest) -> None:
    policy, _ = await save(rest)
    assert ("shadow", 1, 1) == standing(await step(rest, policy, "shadow"))
    assert ("enforce", 1, 1) == standing(await step(rest, policy, "enforce"))
    answer = await rest.post(f"{PATH}/{policy['id']}:shadow", headers=fresh_key())

    assert (409, "conflict") == (answer.status, answer.json["code"])


async def test_going_back_gives_an_old_version_a_new_number(rest: Rest) -> None:
    policy, _ = await save(rest)
    path = f"{PATH}/{policy['id']}"
    await step(rest, policy, "enforce")
    second = {"source": source(rest, tool="dd"),
              "tests": [{"name": "dd", "input": {"request": {"tool": "dd"}},
                         "expect": "deny"}]}  # fmt: skip
    tag = (await rest.get(path)).headers["etag"]
    await rest.put(path, second, headers={"if-match": tag})
    await step(rest, policy, "enforce")
    back = await step(rest, policy, "rollback", {"version": 1})
    read = (await rest.get(path)).json

    assert ("enforce", 3, 3) == standing(back)
    assert (source(rest), DENIES_RM) == (read["source"], read["tests"])
    versions = (await rest.get(f"{path}/versions")).json["items"]
    assert [1, 2, 3] == sorted(item["version"] for item in versions)
    unknown = await rest.post(f"{path}:rollback", {"version": 9}, headers=fresh_key())
    assert 404 == unknown.status


async def test_going_back_on_a_draft_enforces_nothing(rest: Rest) -> None:
    policy, _ = await save(rest)

    assert ("draft", 2, None) == standing(await step(rest, policy, "rollback", {"version": 1}))


async def test_a_retired_policy_decides_nothing_and_may_come_back(rest: Rest) -> None:
    policy, _ = await save(rest)
    await step(rest, policy, "enforce")
    assert ("retired", 1, None) == standing(await step(rest, policy, "retire"))
    assert ("enforce", 1, 1) == standing(await step(rest, policy, "enforce"))
    types = [r["type"] for r in await rest.records() if r["type"].startswith("admin.policy")]
    assert [
        "admin.policy.created", "admin.policy.enforce", "admin.policy.retire",
        "admin.policy.enforce",
    ] == types  # fmt: skip


async def test_a_policy_that_is_not_there_is_not_found(rest: Rest) -> None:
    statuses = [
        (await rest.get(GONE)).status,
        (await rest.get(f"{GONE}/versions")).status,
        (await rest.put(GONE, {"source": "package x"}, headers={"if-match": '"1"'})).status,
        *[
            (await rest.post(f"{GONE}:{verb}", headers=fresh_key())).status
            for verb in ("enforce", "shadow", "retire")
        ],
        (await rest.post(f"{GONE}:rollback", {"version": 1}, headers=fresh_key())).status,
    ]

    assert {404} == set(statuses)


async def test_policies_are_listed_by_key_page_by_page(rest: Rest) -> None:
    for key in ("b", "a", "c"):
        await save(rest, key, tests=[])
    first = (await rest.get(f"{PATH}?page_size=2")).json
    rest_of = (await rest.get(f"{PATH}?page_size=2&page_token={first['next_page_token']}")).json

    assert [["a", "b"], ["c"]] == [
        [item["key"] for item in page["items"]] for page in (first, rest_of)
    ]
    assert "" == rest_of["next_page_token"]
