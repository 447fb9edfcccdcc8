"""What a tenant says of its OpenID provider, and which role it gives to whom.

Decides the role of somebody who signs in. That the claims are true is tokens.py's; whether the
plan has teams, the caller's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from services.control.roles import Role

#: Where people may be sent after a sign-in.
RETURN_TO: Final = (
    r"/(?:approve/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|device(?:/[A-Z]{4}-[A-Z]{4})?)?"
)
TEAMS: Final = "team_management"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    issuer: str
    client_id: str
    #: `secret://name`; None: a public client, whose proof is PKCE alone.
    client_secret: str | None
    scopes: tuple[str, ...]
    #: A claim of the ID token and what its values mean; without one, people here give roles.
    role_claim: str | None
    roles: tuple[tuple[str, str], ...]
    #: Whether whoever the provider knows comes in, or only whoever was invited.
    just_in_time: bool
    #: Whose verified addresses come in; empty: everybody's.
    email_domains: tuple[str, ...]
    revision: int

    @classmethod
    def of(cls, document: Mapping[str, Any], *, revision: int) -> Self:
        """From the document as it is kept."""
        said = document["oidc"]
        return cls(
            issuer=said["issuer"],
            client_id=said["client_id"],
            client_secret=said["client_secret"],
            scopes=tuple(said["scopes"]),
            role_claim=said["role_claim"],
            roles=tuple((one["value"], one["role"]) for one in said["roles"]),
            just_in_time=said["just_in_time"],
            email_domains=tuple(said["email_domains"]),
            revision=revision,
        )

    def mapped(self, claims: Mapping[str, Any]) -> Role:
        """The first rule that fits; a claim that is absent, odd or unknown is a viewer's."""
        told = claims.get(self.role_claim or "")
        values = {told} if isinstance(told, str) else set()
        if isinstance(told, list):
            values = {one for one in told if isinstance(one, str)}
        for value, role in self.roles:
            if value in values:
                return Role.of(role)
        return Role.VIEWER

    def admits(self, address: str | None) -> bool:
        """Whether somebody with this verified address may come in; None: they have none."""
        if not self.email_domains:
            return True
        return address is not None and address.rpartition("@")[2] in self.email_domains


def role_of(
    configuration: Configuration,
    claims: Mapping[str, Any],
    *,
    given: Role | None,
    teams: str,
) -> Role:
    """The role of this sign-in. `given`: what they have, by an invite or from before; None: they
    come for the first time. `teams`: the plan's mode; a plan that ended gives nobody a higher
    role and takes none, one that never had teams has viewers alone.
    """
    wanted = given or Role.VIEWER
    if configuration.role_claim is not None:
        wanted = configuration.mapped(claims)
    if teams == "on":
        return wanted
    if teams == "off" or given is None:
        return Role.VIEWER
    return min(wanted, given)
