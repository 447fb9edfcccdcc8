"""Which data plane is calling: its link key's JWT (deployment.md 3.1), over HTTP and gRPC alike."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from joserfc import errors as jose
from joserfc import jwt
from joserfc.jwk import ECKey

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import PlaneId
from services.common.rpc.peers import Metadata, TokenPeers, claimed, unauthenticated

MAX_LIFE_S: Final = 300
LEEWAY_S: Final = 30
PLANE_PEER: Final = "plane"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """Registered planes by id, each with its public link key."""

    keys: Mapping[PlaneId, ECKey] = field(repr=False)
    audience: str
    clock: Clock

    @classmethod
    def from_file(cls, path: Path, *, audience: str, clock: Clock) -> Planes:
        """The file holds `{plane_id: public JWK}`."""
        document = json.loads(path.read_text())
        keys = {PlaneId(plane): ECKey.import_key(key) for plane, key in document.items()}
        return cls(keys=keys, audience=audience, clock=clock)

    def authenticate(self, token: str) -> PlaneId:
        """1. registered plane  2. signature, ES256 only  3. audience, subject  4. times.

        Raises UNAUTHENTICATED.
        """
        try:
            header, _, _ = token.partition(".")
            plane = PlaneId(str(json.loads(_b64(header))["kid"]))
            key = self.keys[plane]  # 1
            claims = jwt.decode(token, key, algorithms=["ES256"]).claims  # 2
        except (ValueError, KeyError, TypeError, jose.JoseError) as bad:
            raise _refused() from bad
        if (claims.get("aud"), claims.get("sub")) != (self.audience, plane):  # 3
            raise _refused()
        now_s = self.clock.now_ns() // 1_000_000_000
        issued, expires = claims.get("iat"), claims.get("exp")
        if not isinstance(issued, int) or not isinstance(expires, int):  # 4
            raise _refused()
        if not issued - LEEWAY_S <= now_s < expires + LEEWAY_S or expires - issued > MAX_LIFE_S:
            raise _refused()
        return plane


@dataclass(frozen=True, slots=True)
class ControlPeers:
    """Control's gRPC callers: planes by their link token, the machine's services by theirs."""

    tokens: TokenPeers
    planes: Planes

    def verify(self, peer: str, token: str) -> None:
        if peer != PLANE_PEER:
            self.tokens.verify(peer, token)
            return
        self._plane(token)

    def plane_of(self, metadata: Metadata | None) -> PlaneId:
        """Which plane calls. Raises PEER_UNAUTHENTICATED."""
        _, token = claimed(metadata)
        return self._plane(token)

    def _plane(self, token: str) -> PlaneId:
        try:
            return self.planes.authenticate(token)
        except BehavryError as refused:
            raise unauthenticated() from refused


def _refused() -> BehavryError:
    return BehavryError("UNAUTHENTICATED", "the data plane did not prove its identity")


def _b64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
