"""The proxy's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.common.service_settings import ServiceSettings, socket
from services.common.settings import setting, under


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings(ServiceSettings):
    http_listen: str = setting("BEHAVRY_PROXY_HTTP_LISTEN", default="127.0.0.1:8700")
    public_url: str = setting(
        "BEHAVRY_PROXY_PUBLIC_URL", derived=lambda resolved: f"http://{resolved['http_listen']}"
    )
    allowed_hosts: tuple[str, ...] = setting("BEHAVRY_PROXY_ALLOWED_HOSTS", default=())
    cors_origins: tuple[str, ...] = setting("BEHAVRY_PROXY_CORS_ORIGINS", default=())
    grpc_listen: str = setting("BEHAVRY_PROXY_GRPC_LISTEN", derived=socket("proxy"))
    authorizer_address: str = setting("BEHAVRY_AUTHORIZER_ADDRESS", derived=socket("authorizer"))
    audit_address: str = setting("BEHAVRY_AUDIT_ADDRESS", derived=socket("audit"))
    control_public_url: str = setting("BEHAVRY_CONTROL_PUBLIC_URL", default="http://127.0.0.1:8701")
    control_url: str = setting(
        "BEHAVRY_CONTROL_URL", derived=lambda resolved: resolved["control_public_url"]
    )
    decision_timeout_ms: int = setting(
        "BEHAVRY_PROXY_DECISION_TIMEOUT_MS", default=500, minimum=10, maximum=10_000
    )
    # Some clients give up after 60 s.
    hold_seconds: float = setting("BEHAVRY_HOLD_SECONDS", default=45.0, minimum=0, maximum=55)
    # Several processes need their own outboxes and one host for children: not in this version.
    workers: int = setting("BEHAVRY_PROXY_WORKERS", default=1, minimum=1, maximum=1)
    seal_keys: Path = setting(
        "BEHAVRY_PROXY_SEAL_KEYS", derived=under("state_dir", "keys", "seal.keys")
    )
    stdio_file: Path = setting("BEHAVRY_PROXY_STDIO_FILE", derived=under("state_dir", "stdio.toml"))
    stdio_homes: Path = setting("BEHAVRY_PROXY_STDIO_HOMES", derived=under("state_dir", "stdio"))
    # Whether tool servers and their token endpoints may have private addresses.
    egress_private: Literal["allow", "deny"] = setting(
        "BEHAVRY_PROXY_EGRESS_PRIVATE", default="allow"
    )
    secrets_dir: Path = setting("BEHAVRY_SECRETS_DIR", derived=under("state_dir", "secrets"))
    outbox_dir: Path = setting("BEHAVRY_OUTBOX_DIR", derived=under("state_dir", "outbox", "proxy"))
    outbox_durability: Literal["power", "process"] = setting(
        "BEHAVRY_OUTBOX_DURABILITY", default="power"
    )
    outbox_max_bytes: int = setting("BEHAVRY_OUTBOX_MAX_BYTES", default=1 << 30, minimum=1 << 26)
    digest_keys: Path = setting(
        "BEHAVRY_DIGEST_KEYS", derived=under("state_dir", "keys", "digest.keys")
    )
