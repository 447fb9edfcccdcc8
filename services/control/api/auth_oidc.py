"""Sign-in by an organization's OpenID provider: the way there, the way back, and the word of the
provider that it is over.

Back: 1. the state, and the browser that it was given to  2. once, in time, under the settings of
then  3. the answer, for who the person is (oidc_exchange.py)  4. the role and the session
(oidc_arrivals.py), or, of a trial, neither (auth_tests.py). Whatever is wrong is told alike and
recorded by reason; nothing of what came along is kept.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import RedirectResponse, Response

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.common.postgres.pool import tenant_tx
from services.control import audit_records, limits, sessions
from services.control.api import auth_tests
from services.control.api.bodies import media_type, read_capped
from services.control.api.context import Call, Visit
from services.control.api.guards import anyone, authenticate
from services.control.api.oidc_arrivals import Arrival
from services.control.api.oidc_exchange import exchange
from services.control.oidc import flow, tokens
from services.control.oidc.configuration import RETURN_TO, Configuration
from services.control.oidc.flow import NotSignedIn, Transaction
from services.control.oidc.providers import ProviderFailed
from services.control.oidc.tokens import Expected
from services.control.problems import Refusal, not_found
from services.control.store import auth_settings, tenants
from services.control.store import oidc as store
from services.control.store.tenants import Tenant

router = APIRouter(prefix="/api/v1/auth", tags=["people"])

_NOBODY: Final = {"kind": "unknown"}
_MAX_FORM_BYTES: Final = 64 * 1024
#: What a provider's own word, however well signed, is not enough for.
_NOT_PROVEN: Final = {
    "oidc_proof_time_missing": (
        "Your provider does not say when you proved who you are. Whoever runs it must have it put"
        " auth_time into ID tokens that are asked for with max_age (OpenID Connect Core 3.1.2.1)."
    ),
    "oidc_proof_too_old": (
        "Your provider did not ask you anew. Sign out there and begin again; whoever runs it must"
        " have it honour prompt=login and max_age."
    ),
}


class Begin(BaseModel):
    #: Which tenant's provider; may be left out where there is one tenant alone.
    tenant: str = Field("", pattern=r"^([a-z0-9][a-z0-9-]{2,39})?$")
    #: Where the browser goes afterwards: a page of ours.
    return_to: str = Field("/", pattern=f"^{RETURN_TO}$", max_length=100)
    #: Whoever is signed in proves it again.
    step_up: bool = False
    #: Of a link that tries what is proposed; nothing else goes with it.
    test: str = Field("", pattern=r"^([A-Za-z0-9_-]{43}\.[A-Za-z0-9_-]{43})?$")


@router.get("/login", status_code=302)
async def begin_login(
    visit: Annotated[Visit, anyone()], query: Annotated[Begin, Query()]
) -> Response:
    """To the provider. What belongs to this sign-in stays with this browser."""
    await _take(visit)
    if query.test:
        return await auth_tests.lead(visit, query.test)
    control = visit.control
    session = None
    if query.step_up:
        principal = await authenticate(control, visit.request)
        session, tenant = principal.session_sha256, principal.tenant
        if session is None or principal.csrf_token is None:
            raise Refusal("HUMAN_REQUIRED", "Only a person in a browser can do this.")
    else:
        tenant = (await _tenant(visit, query.tenant)).id
    async with tenant_tx(control.pool, tenant) as connection:
        configuration = await _configuration(connection)
    if configuration is None:
        raise not_found("sign-in by a provider")
    try:
        description = await control.providers.describe(configuration.issuer)
    except ProviderFailed as failed:
        await visit.record_failure(tenant, _NOBODY, failed.reason)
        raise Refusal("DEPENDENCY_UNAVAILABLE", "The provider cannot be reached.") from None
    transaction = Transaction.new()
    async with tenant_tx(control.pool, tenant) as connection:
        await store.begin(
            connection,
            tenant,
            transaction,
            revision=configuration.revision,
            return_to=query.return_to,
            session_sha256=session,
            now=visit.now,
            expires_at=visit.now + flow.LIFE,
        )
    url = flow.authorization_url(
        description.authorization_endpoint,
        configuration,
        transaction,
        public_url=control.origins.public_url,
        again=query.step_up,
    )
    answer = RedirectResponse(url, status_code=302)
    answer.headers["set-cookie"] = flow.cookie(transaction.browser, secure=control.origins.secure)
    return answer


@router.get("/callback", status_code=303)
async def end_login(visit: Annotated[Visit, anyone(any_query=True)]) -> Response:
    """Back from the provider, with a code."""
    await _take(visit)
    tenant = None
    try:
        found = flow.parameters(visit.request.query_params.multi_items())
        async with visit.control.pool.acquire() as connection:
            known = await store.find(connection, flow.kept(found.get("state", "")))
        if known is None:
            raise NotSignedIn("oidc_state_unknown")
        tenant, status = known
        if status != "active":
            raise NotSignedIn("tenant_not_active")
        return await _come_back(visit, tenant, found)
    except NotSignedIn as refused:
        await visit.record_failure(tenant, _NOBODY, refused.reason)
        if refused.reason in _NOT_PROVEN:  # their session goes on as it was
            raise Refusal("STEP_UP_REQUIRED", _NOT_PROVEN[refused.reason]) from None
        raise Refusal("UNAUTHENTICATED", "That did not sign you in. Begin again.") from None


async def _come_back(visit: Visit, tenant: TenantId, found: dict[str, str]) -> Response:
    """The numbers are the module's. Raises NotSignedIn."""
    origins = visit.control.origins
    name = flow.cookie_name(secure=origins.secure)
    transaction = Transaction(state=found["state"], browser=visit.request.cookies.get(name, ""))
    begun, configuration = await _begun(visit, tenant, transaction)  # 1, 2
    if begun.change_id is not None:
        return await auth_tests.conclude(
            visit, tenant, begun, transaction, configuration=configuration, found=found
        )
    person = await exchange(visit, configuration, transaction, begun, found)  # 3
    session = sessions.new_token()
    arrival = Arrival(
        visit=visit, tenant=tenant, configuration=configuration, person=person, begun=begun
    )
    await arrival.enter(session)  # 4
    answer = RedirectResponse(begun.return_to, status_code=303)
    answer.headers.append("set-cookie", flow.cookie("", secure=origins.secure))
    answer.headers.append("set-cookie", origins.set_cookie(session))
    return answer


async def _begun(
    visit: Visit, tenant: TenantId, transaction: Transaction
) -> tuple[store.Begun, Configuration]:
    """Another browser's try uses nothing up."""
    state = flow.kept(transaction.state)
    async with tenant_tx(visit.control.pool, tenant) as connection:
        begun = await store.get(connection, state)
        if begun is None:
            raise NotSignedIn("oidc_state_unknown")
        if not transaction.browser or begun.browser_sha256 != flow.kept(transaction.browser):
            raise NotSignedIn("oidc_other_browser")
        if visit.now >= begun.expires_at:
            raise NotSignedIn("oidc_state_expired")
        if begun.used_at is not None or not await store.take(connection, state, visit.now):
            raise NotSignedIn("oidc_state_used")
        if begun.change_id is None:
            configuration = await _configuration(connection)
        else:
            configuration = await auth_tests.proposed(connection, begun)
    if configuration is None or configuration.revision != begun.revision:
        raise NotSignedIn("oidc_settings_changed")
    return begun, configuration


async def login_path(visit: Visit, slug: str, *, return_to: str) -> str | None:
    """Where people of this tenant, or of the only one, sign in by their provider; None: nowhere."""
    try:
        tenant = await _tenant(visit, slug)
    except Refusal:
        return None
    async with tenant_tx(visit.control.pool, tenant.id) as connection:
        if await _configuration(connection) is None:
            return None
    query = urlencode({"tenant": tenant.slug, "return_to": return_to})
    return f"/api/v1/auth/login?{query}"


async def end_session_url(call: Call) -> str | None:
    """Where whoever came by a provider signs out there too, if it has such a place."""
    if call.principal.method != "oidc":
        return None
    async with call.read() as connection:
        configuration = await _configuration(connection)
    known = call.control.providers.known(configuration.issuer) if configuration else None
    if configuration is None or known is None or known.end_session_endpoint is None:
        return None
    return flow.end_session_url(
        known.end_session_endpoint, configuration, public_url=call.control.origins.public_url
    )


@router.post(
    "/backchannel-logout",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/x-www-form-urlencoded": {
                    "schema": {
                        "type": "object",
                        "required": ["logout_token"],
                        "properties": {"logout_token": {"type": "string"}},
                    }
                }
            },
        }
    },
)
async def backchannel_logout(visit: Annotated[Visit, anyone(any_query=True)]) -> Response:
    """The provider says that somebody signed out, or was signed out. It is so at once."""
    window = visit.control.limits.logout_failures
    try:
        window.check(visit.address)
    except limits.TooMany as too_many:
        raise _too_many(too_many) from None
    tenant = None
    try:
        token = await _logout_token(visit)
        issuer = tokens.issuer_stated(token)
        async with visit.control.pool.acquire() as connection:
            meant = await store.tenants_of(connection, issuer)
        failure = NotSignedIn("oidc_issuer_wrong")
        done = False
        for tenant in meant:
            try:
                await _sign_out(visit, tenant, issuer, token)
                done = True
            except NotSignedIn as refused:
                failure = refused
        if not done:
            raise failure
    except NotSignedIn as refused:
        window.enter(visit.address)
        await visit.record_failure(tenant, _NOBODY, refused.reason)
        raise Refusal("INVALID_ARGUMENT", "That logout token cannot be used.") from None
    visit.control.recorder.wake()
    return Response(status_code=200)


async def _logout_token(visit: Visit) -> str:
    if media_type(visit.request) != "application/x-www-form-urlencoded":
        raise NotSignedIn("oidc_token_malformed")
    raw = await read_capped(visit.request, _MAX_FORM_BYTES)
    try:
        form = flow.parameters(parse_qsl(raw.decode(), max_num_fields=20), longest=tokens.MAX_TOKEN)
    except ValueError:
        raise NotSignedIn("oidc_token_malformed") from None
    return form.get("logout_token", "")


async def _sign_out(visit: Visit, tenant: TenantId, issuer: str, token: str) -> None:
    """1. the token, by this tenant's settings  2. heard once  3. the sessions, and their records.
    Raises NotSignedIn.
    """
    control, now = visit.control, visit.now
    async with tenant_tx(control.pool, tenant) as connection:
        configuration = await _configuration(connection)
    if configuration is None or configuration.issuer != issuer:
        raise NotSignedIn("oidc_issuer_wrong")
    expected = Expected(
        issuer=issuer,
        client_id=configuration.client_id,
        nonce="",
        now_s=int(now.timestamp()),
        begun_s=0,
        again=False,
    )
    keys = await control.providers.keys(issuer)  # 1
    try:
        told = tokens.logout(token, keys, expected)
    except tokens.UnknownKey:
        told = tokens.logout(token, await control.providers.keys(issuer, unlike=keys), expected)
    until = now + flow.LIFE + timedelta(seconds=tokens.LOGOUT_LIFE_S + 2 * tokens.SKEW_S)
    async with tenant_tx(control.pool, tenant) as connection:
        heard = await store.hear(connection, tenant, issuer, told, now=now, until=until)  # 2
        if not heard:
            raise NotSignedIn("oidc_logout_used")
        for user in await store.end_sessions(  # 3
            connection, issuer=issuer, subject=told.subject, sid=told.sid, now=now
        ):
            came = visit.came({"kind": "user", "id": user})
            record = audit_records.user("user.signout", tenant, came, reason="oidc_backchannel")
            await control.recorder.put(connection, record)


async def _tenant(visit: Visit, slug: str) -> Tenant:
    """An unknown tenant is as one that has no provider."""
    async with visit.control.pool.acquire() as connection:
        active = [one for one in await tenants.every(connection) if one.status == "active"]
    wanted = [one for one in active if one.slug == slug] if slug else active
    if len(wanted) != 1:
        raise not_found("sign-in by a provider")
    return wanted[0]


async def _configuration(connection: Connection) -> Configuration | None:
    held = await auth_settings.get(connection)
    if held.provider != "oidc":
        return None
    return Configuration.of(held.document, revision=held.in_force)


async def _take(visit: Visit) -> None:
    try:
        await visit.control.limits.sign_in_address.take(visit.address)
    except limits.TooMany as too_many:
        raise _too_many(too_many) from None


def _too_many(too_many: limits.TooMany) -> Refusal:
    return Refusal(
        "RATE_LIMITED",
        "Too many tries. Try again later.",
        headers={"retry-after": str(too_many.retry_after_s)},
    )
