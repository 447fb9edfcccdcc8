"""The entitlements service's settings."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.service_settings import ServiceSettings, socket
from services.common.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class EntitlementsSettings(ServiceSettings):
    grpc_listen: str = setting("BEHAVRY_ENTITLEMENTS_GRPC_LISTEN", derived=socket("entitlements"))
    db_url: str = setting("BEHAVRY_ENTITLEMENTS_DB_URL")
