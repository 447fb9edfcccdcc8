"""What tests of second factors share: adding one, and the two halves of a sign-in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pyotp

from tests.fakes.authenticator import Authenticator
from tests.integration.control.conftest import PUBLIC, Answered, Rest
from tests.integration.control.escalated import Somebody

MFA: Final = "/api/v1/me/mfa"
LOGIN: Final = "/api/v1/auth/login"
SECOND: Final = "/api/v1/auth/second-factor"
STEP_UP: Final = "/api/v1/auth/step-up"
ORIGIN: Final = PUBLIC.replace("127.0.0.1", "localhost")


def code(rest: Rest, secret: str, *, steps: int = 0) -> str:
    """The code of now, or of some steps away."""
    return pyotp.TOTP(secret).generate_otp(rest.clock.now_ns() // (30 * 10**9) + steps)


async def with_totp(rest: Rest, person: Somebody) -> tuple[str, list[str]]:
    """The secret and the recovery codes. The code of this step is used by it."""
    begun = await rest.post(f"{MFA}/totp", {"name": "phone"}, key=person.token)
    assert 201 == begun.status, begun.body
    path = f"{MFA}/totp/{begun.json['id']}:confirm"
    done = await rest.post(path, {"code": code(rest, begun.json["secret"])}, key=person.token)
    assert 200 == done.status, done.body
    return begun.json["secret"], done.json["recovery_codes"]


async def with_passkey(rest: Rest, person: Somebody, key: Authenticator | None = None) -> Answered:
    key = key or Authenticator(origin=ORIGIN)
    begun = await rest.post(f"{MFA}/passkeys:begin", key=person.token)
    assert 200 == begun.status, begun.body
    body = {
        "name": "key",
        "token": begun.json["token"],
        "credential": key.create(begun.json["options"]),
    }
    return await rest.post(f"{MFA}/passkeys", body, key=person.token)


async def first_half(rest: Rest, person: Somebody) -> dict[str, Any]:
    """What is asked of somebody whose password was right."""
    body = {"username": person.name, "password": person.password, "bearer": True}
    answer = await rest.post(LOGIN, body, key=None)
    assert 200 == answer.status, answer.body
    assert answer.json["token"] is answer.json["csrf_token"] is None
    asked: dict[str, Any] = answer.json["second_factor"]
    return asked


async def second_half(rest: Rest, token: str, **proof: Any) -> Answered:
    return await rest.post(SECOND, {"token": token, **proof}, key=None)


async def signed_in_again(rest: Rest, person: Somebody, **proof: Any) -> Somebody:
    asked = await first_half(rest, person)
    answer = await second_half(rest, asked["token"], **proof)
    assert 200 == answer.status, answer.body
    return replace(person, token=answer.json["token"])
