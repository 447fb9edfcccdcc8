"""Policies: save with compile check and test cases, observe, enforce, retire, roll back.

What a policy may contain is common/rego's; which step is allowed when is policies.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from starlette.responses import Response

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.common.rego import parse
from services.common.rego.check import MAX_SOURCE_BYTES, PolicyRejected, PolicyReport, check_policy
from services.common.rego.names import POLICY_KEY, policy_package
from services.common.rego.sample import sample_input
from services.common.rego.tester import PolicyTest, run_tests
from services.control import policies as rules
from services.control.api.bodies import POLICY_MAX_BYTES, Body, json_body
from services.control.api.context import Call, Change
from services.control.api.guards import needs
from services.control.api.shapes import (
    Answer,
    Page,
    Paging,
    Time,
    check_if_match,
    split,
    start_of,
    tag,
)
from services.control.audit_records import change as changed
from services.control.problems import FieldError, Refusal, not_found
from services.control.roles import Role
from services.control.store import policies

router = APIRouter(prefix="/api/v1/policies", tags=["policies"])

Key = Annotated[str, StringConstraints(pattern=f"^{POLICY_KEY.pattern}$")]
Source = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SOURCE_BYTES)]
Changes = Annotated[dict[str, Any], Field(default_factory=dict)]
Reader = Annotated[Call, needs(Role.VIEWER)]
Author = Annotated[Call, needs(Role.POLICY_AUTHOR)]
Observer = Annotated[Call, needs(Role.POLICY_AUTHOR, keyed=True)]
Enforcer = Annotated[Call, needs(Role.POLICY_AUTHOR, keyed=True, fresh=True)]


class TestCase(Body):
    """`input` is merged into a sample call; `expect` is what this policy alone says to it."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    input: Changes
    expect: Literal["allow", "deny", "intercept", "none"]


Tests = Annotated[list[TestCase], Field(default_factory=list, max_length=rules.MAX_TESTS)]


class NewVersion(Body):
    source: Source
    tests: Tests


class NewPolicy(NewVersion):
    key: Key


class Rollback(Body):
    version: Annotated[int, Field(ge=1)]


class Case(Answer):
    name: str
    input: dict[str, Any]
    expect: str


class Policy(Answer):
    id: str
    key: str
    state: str
    latest_version: int
    active_version: int | None
    revision: int
    created_at: Time


class PolicyWithSource(Policy):
    """`source` and `tests` are the latest version's."""

    source: str
    tests: list[Case]


class Version(Answer):
    version: int
    created_by: str
    created_at: Time


class Versions(Answer):
    items: list[Version]


class Checked(Answer):
    """`reads`: the input paths that the policy depends on."""

    package: str
    reads: list[str]
    tests_passed: int


@router.get("")
async def list_policies(call: Reader, query: Paging) -> Page[Policy]:
    after = start_of(call, "policies", query)
    async with call.read() as connection:
        rows = await policies.page(connection, after=after, limit=query.page_size + 1)
    shown, following = split(call, "policies", query, rows, lambda row: str(row["key"]))
    return Page(items=[Policy(**_fields(row)) for row in shown], next_page_token=following)


@router.post("", status_code=201)
async def create_policy(
    call: Author,
    body: Annotated[NewPolicy, json_body(NewPolicy, POLICY_MAX_BYTES)],
    response: Response,
) -> PolicyWithSource:
    """Saved as a draft: it decides nothing until it is observed or enforced."""
    report = await _check(call.tenant, body.key, body)
    policy = call.control.new_id()
    async with call.change(desired=False) as change:
        if await policies.count(change.connection) >= rules.MAX_PER_TENANT:
            raise Refusal("CONFLICT", f"A tenant has at most {rules.MAX_PER_TENANT} policies.")
        row = await policies.insert(
            change.connection, call.tenant, id=policy, key=body.key, now=call.now
        )
        if row is None:
            raise Refusal("CONFLICT", "A policy of that key exists.")
        await _add_version(call, change, (policy, 1), body, report)
        await change.record(
            "admin.policy.created",
            resource="policy",
            resource_id=policy,
            changes=[changed("key", None, body.key), changed("version", None, 1)],
        )
    response.headers["location"] = f"/api/v1/policies/{policy}"
    tag(response, row["revision"])
    return _shown(row, body)


@router.post(":check")
async def check_new_policy(
    call: Author, body: Annotated[NewPolicy, json_body(NewPolicy, POLICY_MAX_BYTES)]
) -> Checked:
    """All that saving would check, and the test cases; saves nothing."""
    report = await _check(call.tenant, body.key, body)
    reads = sorted(".".join(("input", *path)) for path in report.references)
    return Checked(package=report.package, reads=reads, tests_passed=len(body.tests))


@router.get("/{policy_id:uuid}")
async def get_policy(policy_id: UUID, call: Reader, response: Response) -> PolicyWithSource:
    async with call.read() as connection:
        row = await policies.with_source(connection, str(policy_id))
    if row is None:
        raise not_found("policy")
    tag(response, row["revision"])
    tests = [Case(**case) for case in row["tests"]]
    return PolicyWithSource(**{**_fields(row), "tests": tests})


@router.put("/{policy_id:uuid}")
async def save_policy(
    policy_id: UUID,
    call: Author,
    body: Annotated[NewVersion, json_body(NewVersion, POLICY_MAX_BYTES)],
    response: Response,
) -> PolicyWithSource:
    """A new version; the active one goes on deciding until this one is enforced or observed."""
    async with call.read() as connection:
        key = (await _found(connection, policy_id))["key"]
    report = await _check(call.tenant, key, body)
    async with call.change(desired=False) as change:
        row = await _found(change.connection, policy_id, lock=True)
        check_if_match(call.request, row["revision"], required=True)
        version = row["latest_version"] + 1
        await _add_version(call, change, (str(policy_id), version), body, report)
        row = await policies.set_state(
            change.connection,
            str(policy_id),
            state=row["state"],
            active=row["active_version"],
            latest=version,
        )
        await change.record(
            "admin.policy.saved",
            resource="policy",
            resource_id=str(policy_id),
            changes=[changed("version", version - 1, version)],
        )
    tag(response, row["revision"])
    return _shown(row, body)


@router.get("/{policy_id:uuid}/versions")
async def list_policy_versions(policy_id: UUID, call: Reader) -> Versions:
    async with call.read() as connection:
        rows = await policies.versions(connection, str(policy_id))
    if not rows:
        raise not_found("policy")
    return Versions(items=[Version(**row) for row in rows])


@router.post("/{policy_id:uuid}:enforce")
async def enforce_policy(policy_id: UUID, call: Enforcer) -> Policy:
    """The latest version decides from the next bundle on. Its test cases are run once more."""
    return await _activate(call, policy_id, "enforce")


@router.post("/{policy_id:uuid}:shadow")
async def shadow_policy(policy_id: UUID, call: Observer) -> Policy:
    """The latest version is evaluated and recorded, and never counts."""
    return await _activate(call, policy_id, "shadow")


@router.post("/{policy_id:uuid}:retire")
async def retire_policy(policy_id: UUID, call: Author) -> Policy:
    return await _activate(call, policy_id, "retire")


@router.post("/{policy_id:uuid}:rollback")
async def roll_policy_back(
    policy_id: UUID,
    call: Enforcer,
    body: Annotated[Rollback, json_body(Rollback)],
) -> Policy:
    """An old version under a new number, in the state that the policy has now."""
    policy = str(policy_id)
    async with call.change() as change:
        row = await _found(change.connection, policy_id, lock=True)
        new = row["latest_version"] + 1
        copied = await policies.copy_version(
            change.connection,
            policy=policy,
            old=body.version,
            new=new,
            by=call.principal.name,
            now=call.now,
        )
        if not copied:
            raise not_found("version")
        active = new if row["active_version"] is not None else None
        row = await policies.set_state(
            change.connection, policy, state=row["state"], active=active, latest=new
        )
        await change.record(
            "admin.policy.rolled_back",
            resource="policy",
            resource_id=policy,
            changes=[changed("version", body.version, new)],
        )
    return Policy(**_fields(row))


async def _activate(
    call: Call, policy_id: UUID, step: Literal["enforce", "shadow", "retire"]
) -> Policy:
    """1. the test cases of what would decide  2. the step, on the same version  3. the record."""
    policy = str(policy_id)
    async with call.read() as connection:
        seen = await _found(connection, policy_id)
        latest = await policies.version(connection, policy, seen["latest_version"])
    if step != "retire":
        await _run_tests(call.tenant, seen["key"], latest["source"], latest["tests"])  # 1
    async with call.change() as change:
        row = await _found(change.connection, policy_id, lock=True)
        if row["latest_version"] != seen["latest_version"]:
            raise Refusal("CONFLICT", "A newer version was saved meanwhile.")
        to = _step(step, row, tests=len(latest["tests"]))
        row = await policies.set_state(  # 2
            change.connection,
            policy,
            state=to.state,
            active=to.active_version,
            latest=row["latest_version"],
        )
        await change.record(  # 3
            f"admin.policy.{step}",
            resource="policy",
            resource_id=policy,
            changes=[
                changed("state", seen["state"], to.state),
                changed("active_version", seen["active_version"], to.active_version),
            ],
        )
    return Policy(**_fields(row))


def _step(step: str, row: Mapping[str, Any], *, tests: int) -> rules.Activation:
    match step:
        case "enforce":
            return rules.enforce(version=row["latest_version"], tests=tests)
        case "shadow":
            return rules.shadow(row["state"], version=row["latest_version"])
        case _:
            return rules.retire()


async def _check(tenant: TenantId, key: str, body: NewVersion) -> PolicyReport:
    """Raises POLICY_REJECTED with line, column and rule, or naming the test case that failed."""
    try:
        report = await asyncio.to_thread(check_policy, body.source, tenant, key)
    except PolicyRejected as rejected:
        raise Refusal(
            rejected.reason,
            rejected.message,
            errors=[FieldError("/source", rejected.rule)],
            rule=rejected.rule,
            line=str(rejected.line),
            column=str(rejected.column),
        ) from rejected
    await _run_tests(tenant, key, body.source, [case.model_dump() for case in body.tests])
    return report


async def _run_tests(
    tenant: TenantId, key: str, source: str, tests: Sequence[Mapping[str, Any]]
) -> None:
    if not tests:
        return
    if not parse.available():
        raise Refusal("TOOL_UNAVAILABLE", "No engine for test cases is installed here.")
    cases = [
        PolicyTest(name=case["name"], input=sample_input(case["input"]), result=case["expect"])
        for case in tests
    ]
    outcomes = await run_tests(source, policy_package(tenant, key), cases)
    errors = [
        FieldError(f"/tests/{place}/expect", outcome.result)
        for place, outcome in enumerate(outcomes)
        if not outcome.passed
    ]
    if errors:
        raise Refusal("POLICY_REJECTED", "A test case came out differently.", errors=errors[:50])


async def _found(connection: Connection, policy_id: UUID, *, lock: bool = False) -> dict[str, Any]:
    row = await policies.get(connection, str(policy_id), lock=lock)
    if row is None:
        raise not_found("policy")
    return row


async def _add_version(
    call: Call, change: Change, new: tuple[str, int], body: NewVersion, report: PolicyReport
) -> None:
    policy, version = new
    await policies.add_version(
        change.connection,
        call.tenant,
        policy=policy,
        version=version,
        source=body.source,
        tests=[case.model_dump() for case in body.tests],
        report=report,
        by=call.principal.name,
        now=call.now,
    )


def _shown(row: Mapping[str, Any], body: NewVersion) -> PolicyWithSource:
    tests = [Case(**case.model_dump()) for case in body.tests]
    return PolicyWithSource(**_fields(row), source=body.source, tests=tests)


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "id": str(row["id"])}
