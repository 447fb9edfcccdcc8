"""The audit service's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.common.service_settings import ServiceSettings, socket
from services.common.settings import setting, under


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings(ServiceSettings):
    grpc_listen: str = setting("BEHAVRY_AUDIT_GRPC_LISTEN", derived=socket("audit"))
    #: Addresses name a passfile; one with a password in it is refused.
    writer_db_url: str = setting("BEHAVRY_AUDIT_WRITER_DB_URL")
    reader_db_url: str = setting("BEHAVRY_AUDIT_READER_DB_URL")
    #: Its first key also binds page tokens to their list, so that they survive a restart.
    digest_keys: Path = setting(
        "BEHAVRY_DIGEST_KEYS", derived=under("state_dir", "keys", "digest.keys")
    )
