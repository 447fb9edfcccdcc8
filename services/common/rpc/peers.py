"""Who may call what. Inside one machine a peer proves its name by a token from a 0600 file, sent
once per call or stream; the allow matrix is data (deployment.md 6), and its default is nobody.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from services.common.errors import BehavryError

PEER_KEY: Final = "behavry-peer"
TOKEN_KEY: Final = "authorization"  # noqa: S105  # a header name
Metadata = Sequence[tuple[str, str | bytes]]

#: gRPC service -> peers that may call it. `plane` is a link token's holder, `operator` the owner
#: of the machine.
ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    "behavry.authorizer.v1.AuthorizerService": frozenset({"proxy"}),
    "behavry.authorizer.v1.SnapshotService": frozenset({"proxy", "audit"}),
    "behavry.audit.v1.AuditWriterService": frozenset({"proxy", "authorizer", "control"}),
    "behavry.audit.v1.AuditReaderService": frozenset({"control", "operator"}),
    "behavry.control.v1.PlaneLinkService": frozenset({"plane"}),
    "behavry.entitlements.v1.EntitlementsReaderService": frozenset({"control"}),
    "behavry.entitlements.v1.EntitlementsAdminService": frozenset({"control"}),
    "behavry.common.v1.DiagnosticsService": frozenset({"operator"}),
}
#: Health tells nothing but states and is asked before tokens exist.
OPEN: Final = frozenset({"grpc.health.v1.Health"})


class Authenticator(Protocol):
    def verify(self, peer: str, token: str) -> None:
        """Returns if `token` proves that the caller is `peer`; raises PEER_UNAUTHENTICATED."""


@dataclass(frozen=True, slots=True)
class TokenPeers:
    """Tokens of the peers of one machine: `<directory>/<peer>.token`."""

    directory: Path

    def verify(self, peer: str, token: str) -> None:
        if not peer.isalpha():
            raise unauthenticated()
        try:
            expected = (self.directory / f"{peer}.token").read_bytes().strip()
        except OSError as missing:
            raise unauthenticated() from missing
        if len(expected) < 32 or not hmac.compare_digest(expected, token.encode()):
            raise unauthenticated()


@dataclass(frozen=True, slots=True)
class Identity:
    """How this process names itself to others: metadata of every call that it makes."""

    peer: str
    token_file: Path

    def metadata(self) -> tuple[tuple[str, str], ...]:
        token = self.token_file.read_text().strip()
        return ((PEER_KEY, self.peer), (TOKEN_KEY, f"Bearer {token}"))


def unauthenticated() -> BehavryError:
    return BehavryError("PEER_UNAUTHENTICATED", "the caller did not prove which service it is")


def claimed(metadata: Metadata | None) -> tuple[str, str]:
    """(peer, token) as the caller states them; empty where it states nothing."""
    values = {key: value for key, value in metadata or () if isinstance(value, str)}
    return values.get(PEER_KEY, ""), values.get(TOKEN_KEY, "").removeprefix("Bearer ")


def admit(service: str, metadata: Metadata | None, authenticator: Authenticator) -> str:
    """The caller's proven name. Raises PEER_UNAUTHENTICATED or PEER_NOT_ALLOWED."""
    if service in OPEN:
        return ""
    peer, token = claimed(metadata)
    authenticator.verify(peer, token)
    if peer not in ALLOWED.get(service, frozenset()):
        raise BehavryError("PEER_NOT_ALLOWED", "this peer may not call this service", peer=peer)
    return peer


def peer_of(context: Any) -> str:
    """The name of a caller that the interceptor has admitted already."""
    return claimed(context.invocation_metadata())[0]
