"""How planes prove themselves to a tool server, as REST takes it: one form per kind.

What is secret is a reference; planes resolve it. What the kinds may say together is
services/control/upstream_credentials.py's to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints

from services.control import servers as rules
from services.control import upstream_credentials as credentials
from services.control.api.bodies import Body

Reference = Annotated[str, StringConstraints(pattern=rules.REFERENCE)]
#: Or empty for none.
MaybeReference = Annotated[str, StringConstraints(pattern=f"{rules.REFERENCE}|^$")]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Name = Annotated[str, StringConstraints(pattern=credentials.NAME)]
MaybeName = Annotated[str, StringConstraints(pattern=f"{credentials.NAME}|^$")]
Scope = Annotated[str, StringConstraints(pattern=credentials.SCOPE)]
ClaimName = Annotated[str, StringConstraints(pattern=credentials.CLAIM)]
ClaimText = Annotated[str, StringConstraints(max_length=256)]
ClaimNumber = Annotated[int, Field(ge=-(2**53) + 1, le=2**53 - 1)]
Claims = Annotated[
    dict[ClaimName, bool | ClaimNumber | ClaimText], Field(max_length=credentials.MAX_CLAIMS)
]


class NoCredential(Body):
    kind: Literal["none"]


class HeaderCredential(Body):
    """A header of every request to the server. The value is a reference; planes resolve it."""

    kind: Literal["header"]
    name: Annotated[str, StringConstraints(pattern=rules.HEADER_NAME)]
    value: Reference


class _Token(Body):
    """A token of the server's own issuer, in `Authorization`."""

    token_url: Url
    #: Authorities that the token endpoint's certificate may come from, instead of the machine's.
    token_ca: MaybeReference = ""
    scope: Scope = ""
    #: RFC 8707: what the token is for.
    resource: MaybeName = ""
    audience: MaybeName = ""
    client_auth: Literal["basic", "post"] = "basic"


class ClientCredentials(_Token):
    """RFC 6749 4.4."""

    kind: Literal["client_credentials"]
    client_id: Name
    client_secret: Reference


class _Signing(_Token):
    """What is asked with is signed by the plane: RSA or EC, as PEM or JWK."""

    key: Reference
    key_id: MaybeName = ""
    issuer: Name
    client_id: MaybeName = ""
    client_secret: MaybeReference = ""


class JwtBearer(_Signing):
    """RFC 7523: `audience` is whom the assertion is for, the token endpoint unless said."""

    kind: Literal["jwt_bearer"]
    #: The issuer unless said.
    subject: MaybeName = ""
    claims: Claims = Field(default={})


class TokenExchange(_Signing):
    """RFC 8693: each agent's own token, for a subject that the plane names."""

    kind: Literal["token_exchange"]


class Mtls(Body):
    """A client certificate, with its key; PEM."""

    kind: Literal["mtls"]
    certificate: Reference
    key: Reference


class UserLogin(Body):
    """A login of each user's own. Not in this version, whatever else is said of it."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    kind: Literal["user_login", "authorization_code"]


Credential = Annotated[
    NoCredential
    | HeaderCredential
    | ClientCredentials
    | JwtBearer
    | TokenExchange
    | Mtls
    | UserLogin,
    Field(discriminator="kind"),
]
NONE: Final = NoCredential(kind="none")


def columns(credential: Credential) -> dict[str, Any]:
    """As the row holds it. Raises BadServer."""
    header, reference, settings = "", "", {}
    match credential:
        case UserLogin():
            raise rules.BadServer(
                "credential/kind",
                "unsupported_credential",
                "A login of each user's own is not supported; `token_exchange` tells the server's "
                "issuer which agent asks, `client_credentials` and `header` are one for all.",
            )
        case HeaderCredential():
            header, reference = credential.name, credential.value
        case _:
            settings = credential.model_dump(exclude={"kind"}, exclude_defaults=True)
    return {
        "credential_kind": credential.kind,
        "credential_header": header,
        "credential_ref": reference,
        "credential_settings": settings,
    }


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """As it was said, and as bundles say it."""
    credential = {"kind": row["credential_kind"], **row["credential_settings"]}
    if row["credential_kind"] == "header":
        credential |= {"name": row["credential_header"], "value": row["credential_ref"]}
    return credential
