"""Whether people can sign in the way that is proposed: somebody does, and no session comes of it.

By a provider: 1. an admin gets a link, good once and for ten minutes, that any browser may follow
2. the real flow with the proposed settings  3. whoever comes back would be let in  4. that is on
record, and the change takes effect if nothing else is missing. To go back to passwords an admin
gives their own. A try that fails changes nothing; why it failed is shown with the proposal.
"""

from __future__ import annotations

from html import escape
from typing import Annotated, Final

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import RedirectResponse, Response

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.common.postgres.pool import tenant_tx
from services.control import limits
from services.control.api.auth_taking_effect import NotPossible, settle
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Change, Visit
from services.control.api.guards import needs
from services.control.api.oidc_arrivals import Arrival
from services.control.api.oidc_exchange import exchange
from services.control.api.pages.frame import document, page_of
from services.control.api.shapes import Answer, Time
from services.control.audit_records import change as changed
from services.control.auth_changes import Pending
from services.control.oidc import flow
from services.control.oidc.configuration import Configuration
from services.control.oidc.flow import NotSignedIn, Transaction
from services.control.oidc.providers import ProviderFailed
from services.control.problems import Refusal, not_found
from services.control.roles import Role
from services.control.store import auth_changes as changes
from services.control.store import auth_settings, people
from services.control.store import oidc as store
from services.control.store.moments import z

router = APIRouter(prefix="/api/v1", tags=["settings"])

_PASSED: Final = "The sign-in worked"
_FAILED: Final = "The sign-in did not work"
_NO_TIME: Final = (
    " But the provider does not say when you proved who you are (auth_time in its ID tokens):"
    " nobody who comes by it can do what needs a fresh proof."
)


class AuthTest(Body):
    #: One's own, where passwords are what is proposed.
    password: str | None = Field(default=None, min_length=1, max_length=1024)


class AuthTested(Answer):
    #: Where a browser tries it; null where it has passed already.
    uri: str | None
    expires_at: Time | None


@router.post("/settings/auth:test")
async def try_auth_settings(
    call: Annotated[Call, needs(Role.ADMIN, human=True, fresh=True)],
    body: Annotated[AuthTest, json_body(AuthTest)],
) -> AuthTested:
    async with call.read() as connection:
        pending = await changes.get(connection)
        held = await auth_settings.get(connection)
    if pending is None:
        raise not_found("proposal of auth")
    if pending.provider == "password":
        await _by_password(call, pending, body.password)
        return AuthTested(uri=None, expires_at=None)
    transaction, expires_at = Transaction.new(), call.now + flow.LIFE
    async with call.read() as connection:
        await store.begin(
            connection,
            call.tenant,
            transaction,
            revision=held.in_force,
            return_to="/",
            now=call.now,
            expires_at=expires_at,
            trial=store.Trial(change=pending.id, tester=call.principal.id),
        )
    link = f"{call.control.origins.public_url.rstrip('/')}/api/v1/auth/login"
    query = f"test={transaction.state}.{transaction.browser}"
    return AuthTested(uri=f"{link}?{query}", expires_at=expires_at)


async def lead(visit: Visit, ticket: str) -> Response:
    """Whoever has the link, to the provider that is proposed."""
    state, _, browser = ticket.partition(".")
    transaction = Transaction(state=state, browser=browser)
    tenant, begun = await _open(visit, transaction)
    async with tenant_tx(visit.control.pool, tenant) as connection:
        configuration = await proposed(connection, begun)
    if configuration is None:
        raise not_found("test of a sign-in")
    try:
        description = await visit.control.providers.describe(configuration.issuer)
    except ProviderFailed as failed:
        await _fail(visit, tenant, begun, failed.reason)
        raise Refusal("DEPENDENCY_UNAVAILABLE", "The provider cannot be reached.") from None
    url = flow.authorization_url(
        description.authorization_endpoint,
        configuration,
        transaction,
        public_url=visit.control.origins.public_url,
        again=True,  # so that it has to say when
    )
    answer = RedirectResponse(url, status_code=302)
    answer.headers["set-cookie"] = flow.cookie(browser, secure=visit.control.origins.secure)
    return answer


async def proposed(connection: Connection, begun: store.Begun) -> Configuration | None:
    """What this trial is of; None when something else was proposed since."""
    pending = await changes.get(connection)
    if pending is None or pending.id != begun.change_id or pending.provider != "oidc":
        return None
    return Configuration.of(pending.document, revision=begun.revision)


async def conclude(
    visit: Visit,
    tenant: TenantId,
    begun: store.Begun,
    transaction: Transaction,
    *,
    configuration: Configuration,
    found: dict[str, str],
) -> Response:
    """Back from the provider. What is told of a failure is told the tenant's admins alone."""
    try:
        person = await exchange(visit, configuration, transaction, begun, found)
        arrival = Arrival(
            visit=visit, tenant=tenant, configuration=configuration, person=person, begun=begun
        )
        async with visit.change_in(tenant, _tester(begun), desired=False) as change:
            role = await arrival.foretell(change.connection)
            await _pass(visit, change, begun, role)
    except NotSignedIn as refused:
        await _fail(visit, tenant, begun, refused.reason)
        words = "Nothing has changed. The reason is shown with the proposal."
        return _page(visit, _FAILED, words, status=401)
    except NotPossible as refused:
        await _fail(visit, tenant, begun, refused.reason)
        return _page(visit, _FAILED, refused.words, status=409)
    words = f"Whoever you are there would come in here as {role.key}. You are not signed in by it."
    if person.auth_time_s is None:
        words += _NO_TIME
    return _page(visit, _PASSED, words, status=200)


async def _open(visit: Visit, transaction: Transaction) -> tuple[TenantId, store.Begun]:
    """A trial that has not come back yet. Raises NOT_FOUND, for every other the same."""
    state = flow.kept(transaction.state)
    async with visit.control.pool.acquire() as connection:
        known = await store.find(connection, state)
    if known is not None and known[1] == "active":
        async with tenant_tx(visit.control.pool, known[0]) as connection:
            begun = await store.get(connection, state)
        if begun is not None and begun.change_id is not None and begun.used_at is None:
            ours = begun.browser_sha256 == flow.kept(transaction.browser)
            if ours and visit.now < begun.expires_at:
                return known[0], begun
    raise not_found("test of a sign-in")


async def _by_password(call: Call, pending: Pending, password: str | None) -> None:
    """Raises UNAUTHENTICATED, RATE_LIMITED, CONFLICT."""
    if not await _is_own(call, password or ""):
        async with call.change(desired=False) as change:
            await _failed(change, pending.id, "password_wrong")
        raise Refusal("UNAUTHENTICATED", "The password is wrong, or you have none here.")
    trial = store.Trial(change=pending.id, tester=call.principal.id)
    try:
        async with call.change(desired=False) as change:
            await _passed(change, trial, call.principal.role, now_z=z(call.now), visit=call)
    except NotPossible as refused:
        raise refused.refusal() from None


async def _is_own(call: Call, password: str) -> bool:
    control, name = call.control, call.principal.name
    try:
        await control.limits.sign_in.take((name, call.address))
    except limits.TooMany as too_many:
        wait = {"retry-after": str(too_many.retry_after_s)}
        raise Refusal("RATE_LIMITED", "Too many tries. Try again later.", headers=wait) from None
    async with control.pool.acquire() as connection:
        account = await people.find_account(connection, name)
    own = account is not None and account.user_id == call.principal.id
    stored = account.password_hash if account and own else None
    return await control.passwords.matches(stored, password) and stored is not None


async def _pass(visit: Visit, change: Change, begun: store.Begun, role: Role) -> None:
    trial = store.Trial(change=str(begun.change_id), tester=str(begun.tester))
    await _passed(change, trial, role, now_z=z(visit.now), visit=visit)


async def _passed(
    change: Change, trial: store.Trial, role: Role, *, now_z: str, visit: Visit
) -> None:
    connection = change.connection
    held = await auth_settings.get(connection, lock=True)
    pending = await changes.get(connection, lock=True)
    if pending is None or pending.id != trial.change:
        raise NotPossible("oidc_settings_changed", "Something else was proposed meanwhile.")
    await changes.passed(connection, pending.id, by=trial.tester, now=visit.now)
    await change.record(
        "admin.auth.tested",
        resource="auth",
        resource_id=change.tenant,
        changes=[changed("tested_at", None, now_z), changed("role", None, role.key)],
    )
    await settle(change, held, now=visit.now)


async def _fail(visit: Visit, tenant: TenantId, begun: store.Begun, reason: str) -> None:
    async with visit.change_in(tenant, _tester(begun), desired=False) as change:
        await _failed(change, str(begun.change_id), reason)


async def _failed(change: Change, id: str, reason: str) -> None:
    await changes.failed(change.connection, id, reason)
    await change.record(
        "admin.auth.test_failed", resource="auth", resource_id=change.tenant, reason=reason
    )


def _tester(begun: store.Begun) -> dict[str, str]:
    return {"kind": "user", "id": str(begun.tester)}


def _page(visit: Visit, title: str, words: str, *, status: int) -> Response:
    text = document(title, f"<h1>{escape(title)}</h1><p>{escape(words)}</p>", failed=status >= 400)
    answer = page_of(text, status=status)
    answer.headers["set-cookie"] = flow.cookie("", secure=visit.control.origins.secure)
    return answer
