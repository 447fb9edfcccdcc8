"""What a browser brings back from a provider, traded for who the person is: 1. who answered  2. the
code for an ID token  3. the token, with newer keys where none of the known ones did.
"""

from __future__ import annotations

from services.control.api.context import Visit
from services.control.oidc import flow, tokens
from services.control.oidc.configuration import Configuration
from services.control.oidc.flow import Transaction
from services.control.oidc.tokens import Expected, Person
from services.control.store.oidc import Begun


async def exchange(
    visit: Visit,
    configuration: Configuration,
    transaction: Transaction,
    begun: Begun,
    found: dict[str, str],
) -> Person:
    """Raises NotSignedIn. The numbers are the module's."""
    providers = visit.control.providers
    description = await providers.describe(configuration.issuer)
    answered = flow.returned(  # 1
        found, configuration, issuer_promised=description.names_itself
    )
    token = await providers.redeem(  # 2
        configuration,
        answered.code,
        verifier=transaction.verifier,
        redirect_uri=flow.redirect_uri(visit.control.origins.public_url),
    )
    expected = Expected(
        issuer=configuration.issuer,
        client_id=configuration.client_id,
        nonce=transaction.nonce,
        now_s=int(visit.now.timestamp()),
        begun_s=int(begun.created_at.timestamp()),
        again=begun.session_sha256 is not None,
    )
    keys = await providers.keys(configuration.issuer)  # 3
    try:
        return tokens.person(token, keys, expected)
    except tokens.UnknownKey:
        newer = await providers.keys(configuration.issuer, unlike=keys)
        return tokens.person(token, newer, expected)
