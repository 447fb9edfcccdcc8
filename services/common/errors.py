"""The error that carries a reason of the catalogue (`behavry.common.v1.ErrorReason`).

Callers branch on `reason`; people read the message; neither ever holds a payload or a secret.
"""

from __future__ import annotations


class BehavryError(Exception):
    """`reason` is an ErrorReason name without its prefix: `POLICY_REJECTED`."""

    def __init__(self, reason: str, message: str, /, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = metadata

    @property
    def code(self) -> str:
        """The reason as REST and MCP spell it: `policy_rejected`."""
        return self.reason.lower()
