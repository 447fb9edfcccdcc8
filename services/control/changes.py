"""Tells whoever listens that a tenant's desired state changed.

Called after the commit, never before: a listener that reads at once sees the change. A listener
does little (it sets an event); gathering and building is its own work.
"""

from __future__ import annotations

from collections.abc import Callable

from services.common.ids import TenantId

Listener = Callable[[TenantId], None]


class Changes:
    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def touch(self, tenant: TenantId) -> None:
        for listener in self._listeners:
            listener(tenant)
