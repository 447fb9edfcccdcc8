"""The authorizer's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.common.counter_store.address import check_address
from services.common.service_settings import ServiceSettings, socket
from services.common.settings import Resolved, SettingsError, setting, under


def _bundle_url(resolved: Resolved) -> str:
    return f"{resolved['control_url']}/api/v1/policy/bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizerSettings(ServiceSettings):
    grpc_listen: str = setting("BEHAVRY_AUTHORIZER_GRPC_LISTEN", derived=socket("authorizer"))
    audit_address: str = setting("BEHAVRY_AUDIT_ADDRESS", derived=socket("audit"))
    control_address: str = setting("BEHAVRY_CONTROL_ADDRESS", derived=socket("control"))
    control_public_url: str = setting("BEHAVRY_CONTROL_PUBLIC_URL", default="http://127.0.0.1:8701")
    control_url: str = setting(
        "BEHAVRY_CONTROL_URL", derived=lambda resolved: resolved["control_public_url"]
    )
    environment: str = setting("BEHAVRY_ENVIRONMENT", default="local")
    bundle_url: str = setting("BEHAVRY_AUTHORIZER_BUNDLE_URL", derived=_bundle_url)
    bundle_dir: Path = setting(
        "BEHAVRY_AUTHORIZER_BUNDLE_DIR", derived=under("state_dir", "bundles")
    )
    trust_file: Path = setting(
        "BEHAVRY_AUTHORIZER_TRUST_FILE", derived=under("state_dir", "trust.json")
    )
    link_key: Path = setting(
        "BEHAVRY_AUTHORIZER_LINK_KEY", derived=under("state_dir", "keys", "link.pem")
    )
    poll_s: int = setting("BEHAVRY_AUTHORIZER_POLL_SECONDS", default=30, minimum=1, maximum=3600)
    expire_after_s: int = setting(
        "BEHAVRY_AUTHORIZER_EXPIRE_AFTER_SECONDS", default=86_400, minimum=900, maximum=2_592_000
    )
    engine: Literal["auto", "opa", "embedded"] = setting(
        "BEHAVRY_AUTHORIZER_ENGINE", default="auto"
    )
    opa_url: str = setting("BEHAVRY_OPA_URL", default="")
    opa_feed_listen: str = setting("BEHAVRY_AUTHORIZER_OPA_FEED_LISTEN", default="127.0.0.1:8702")
    opa_feed_token: Path = setting(
        "BEHAVRY_AUTHORIZER_OPA_FEED_TOKEN", derived=under("state_dir", "peers", "opa.token")
    )
    outbox_dir: Path = setting(
        "BEHAVRY_OUTBOX_DIR", derived=under("state_dir", "outbox", "authorizer")
    )
    outbox_durability: Literal["power", "process"] = setting(
        "BEHAVRY_OUTBOX_DURABILITY", default="power"
    )
    outbox_max_bytes: int = setting("BEHAVRY_OUTBOX_MAX_BYTES", default=1 << 30, minimum=1 << 26)
    digest_keys: Path = setting(
        "BEHAVRY_DIGEST_KEYS", derived=under("state_dir", "keys", "digest.keys")
    )
    ticket_dir: Path = setting(
        "BEHAVRY_AUTHORIZER_TICKET_DIR", derived=under("state_dir", "tickets")
    )
    kill_file: Path = setting("BEHAVRY_AUTHORIZER_KILL_FILE", derived=under("state_dir", "kill"))
    replicas: int = setting("BEHAVRY_AUTHORIZER_REPLICAS", default=1, minimum=1, maximum=100)
    #: redis://host:port/db, rediss://..., unix:///path. Empty: this process's own memory and files.
    counter_store_url: str = setting("BEHAVRY_COUNTER_STORE_URL", default="")
    counter_store_password_file: Path | None = setting(
        "BEHAVRY_COUNTER_STORE_PASSWORD_FILE", default=None
    )

    def check(self) -> None:
        """Raises SettingsError where two settings do not go together."""
        ServiceSettings.check(self)  # super() does not find its class behind slots
        if self.engine == "opa" and not self.opa_url:
            raise SettingsError(
                "BEHAVRY_AUTHORIZER_ENGINE='opa' needs BEHAVRY_OPA_URL: unix:/path or http://host:port"
            )
        if self.replicas > 1 and not self.counter_store_url:
            raise SettingsError(
                f"BEHAVRY_AUTHORIZER_REPLICAS='{self.replicas}' needs BEHAVRY_COUNTER_STORE_URL: "
                "replicas that share no store would each use an approval up."
            )
        check_address(self.counter_store_url)
        embedded = self.engine == "embedded" or not self.opa_url
        if embedded and self.env == "production":
            raise SettingsError(
                "BEHAVRY_ENV='production' cannot use the embedded engine. Set BEHAVRY_OPA_URL, or "
                "BEHAVRY_ENV to development."
            )
