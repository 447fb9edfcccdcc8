"""Passkeys (WebAuthn): what a browser is asked, and whether its answer proves one. The checking is
the library's; decided here is for which site, from which origins, and that the person was verified.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import webauthn
from webauthn.helpers import options_to_json, parse_authentication_credential_json
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

NAME: Final = "Behavry"
CHALLENGE_BYTES: Final = 32
_VERIFIED: Final = UserVerificationRequirement.REQUIRED
#: What a hostile answer makes the library's parsers raise.
_BAD: Final = (WebAuthnException, ValueError, KeyError, TypeError, AttributeError)


class NotProven(Exception):
    """The answer proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    credential_id: bytes
    public_key: bytes = field(repr=False)
    sign_count: int


@dataclass(frozen=True, slots=True)
class Site:
    """The site that passkeys are for. On loopback that is `localhost`: an address can have none."""

    rp_id: str
    origins: tuple[str, ...]

    @classmethod
    def of(cls, public_url: str, *, loopback: bool) -> Site:
        parts = urlsplit(public_url)
        if not loopback:
            return cls(parts.hostname or "", (public_url,))
        port = f":{parts.port}" if parts.port else ""
        return cls("localhost", (f"{parts.scheme}://localhost{port}",))

    def creation(
        self, *, user: str, username: str, challenge: bytes, known: Sequence[bytes]
    ) -> dict[str, Any]:
        """What `navigator.credentials.create` is given."""
        return _plain(
            webauthn.generate_registration_options(
                rp_id=self.rp_id,
                rp_name=NAME,
                user_name=username,
                user_id=user.encode(),
                challenge=challenge,
                authenticator_selection=AuthenticatorSelectionCriteria(
                    resident_key=ResidentKeyRequirement.PREFERRED, user_verification=_VERIFIED
                ),
                exclude_credentials=[PublicKeyCredentialDescriptor(id=one) for one in known],
            )
        )

    def request(self, *, challenge: bytes, known: Sequence[bytes]) -> dict[str, Any]:
        """What `navigator.credentials.get` is given."""
        return _plain(
            webauthn.generate_authentication_options(
                rp_id=self.rp_id,
                challenge=challenge,
                allow_credentials=[PublicKeyCredentialDescriptor(id=one) for one in known],
                user_verification=_VERIFIED,
            )
        )

    def made(self, answer: Mapping[str, Any], *, challenge: bytes) -> Made:
        """Raises NotProven."""
        try:
            verified = webauthn.verify_registration_response(
                credential=dict(answer),
                expected_challenge=challenge,
                expected_rp_id=self.rp_id,
                expected_origin=list(self.origins),
                require_user_verification=True,
            )
        except _BAD:
            raise NotProven from None
        return Made(
            credential_id=verified.credential_id,
            public_key=verified.credential_public_key,
            sign_count=verified.sign_count,
        )

    def proven(
        self, answer: Mapping[str, Any], *, challenge: bytes, public_key: bytes, sign_count: int
    ) -> int:
        """The authenticator's next count. Raises NotProven, also where it went back: a copy."""
        try:
            verified = webauthn.verify_authentication_response(
                credential=dict(answer),
                expected_challenge=challenge,
                expected_rp_id=self.rp_id,
                expected_origin=list(self.origins),
                credential_public_key=public_key,
                credential_current_sign_count=sign_count,
                require_user_verification=True,
            )
        except _BAD:
            raise NotProven from None
        return verified.new_sign_count


def new_challenge() -> bytes:
    return secrets.token_bytes(CHALLENGE_BYTES)


def credential_id(answer: Mapping[str, Any]) -> bytes:
    """Which passkey says that it answers. Raises NotProven."""
    try:
        return parse_authentication_credential_json(dict(answer)).raw_id
    except _BAD:
        raise NotProven from None


def _plain(options: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(options_to_json(options))
    return plain
