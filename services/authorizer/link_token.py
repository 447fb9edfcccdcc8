"""The plane's proof of itself towards control: a JWT of its link key, at most 5 minutes old."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from joserfc import jwt
from joserfc.jwk import ECKey

from services.common.clock import Clock
from services.common.ids import PlaneId, uuid7

LIFE_S: Final = 300
#: A token is made again when less than this is left.
RENEW_S: Final = 60


@dataclass(slots=True, kw_only=True)
class LinkTokens:
    key: ECKey = field(repr=False)
    plane_id: PlaneId
    audience: str
    clock: Clock
    _token: str = field(default="", repr=False)
    _expires_s: int = 0

    @classmethod
    def from_file(cls, path: Path, *, plane_id: PlaneId, audience: str, clock: Clock) -> LinkTokens:
        key = ECKey.import_key(path.read_bytes())
        return cls(key=key, plane_id=plane_id, audience=audience, clock=clock)

    def bearer(self) -> str:
        """The value of an Authorization header (RFC 6750 2.1)."""
        now_ns = self.clock.now_ns()
        now_s = now_ns // 1_000_000_000
        if now_s > self._expires_s - RENEW_S:
            claims = {
                "iss": self.plane_id,
                "sub": self.plane_id,
                "aud": self.audience,
                "iat": now_s,
                "exp": now_s + LIFE_S,
                "jti": uuid7(now_ns),
            }
            header = {"alg": "ES256", "kid": self.plane_id}
            self._token = jwt.encode(header, claims, self.key, algorithms=["ES256"])
            self._expires_s = now_s + LIFE_S
        return f"Bearer {self._token}"
