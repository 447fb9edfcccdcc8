"""The entitlements service's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.common.service_settings import ServiceSettings, socket
from services.common.settings import setting, under


@dataclass(frozen=True, slots=True, kw_only=True)
class EntitlementsSettings(ServiceSettings):
    grpc_listen: str = setting("BEHAVRY_ENTITLEMENTS_GRPC_LISTEN", derived=socket("entitlements"))
    db_url: str = setting("BEHAVRY_ENTITLEMENTS_DB_URL")
    #: The installation's licence: the text before the file, both before one that was activated.
    license: str = setting("BEHAVRY_LICENSE", default="", secret=True)
    license_file: Path | None = setting("BEHAVRY_LICENSE_FILE", default=None)
    #: A list of revoked licences.
    revocations_file: Path | None = setting("BEHAVRY_LICENSE_REVOCATIONS_FILE", default=None)
    #: Says to what licences are bound, for `behavry license request`.
    installation_file: Path = setting(
        "BEHAVRY_INSTALLATION_FILE", derived=under("state_dir", "installation.fingerprint")
    )
