"""Control's settings. Plain HTTP is for loopback only: anything else must name an https address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from services.common.counter_store.address import check_address
from services.common.service_settings import ServiceSettings, socket
from services.common.settings import SettingsError, setting, under

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings(ServiceSettings):
    http_listen: str = setting("BEHAVRY_CONTROL_HTTP_LISTEN", default="127.0.0.1:8701")
    grpc_listen: str = setting("BEHAVRY_CONTROL_GRPC_LISTEN", derived=socket("control"))
    #: Also the issuer of tokens.
    public_url: str = setting("BEHAVRY_CONTROL_PUBLIC_URL", default="http://127.0.0.1:8701")
    proxy_public_url: str = setting("BEHAVRY_PROXY_PUBLIC_URL", default="http://127.0.0.1:8700")
    environment: str = setting("BEHAVRY_ENVIRONMENT", default="local")
    db_url: str = setting("BEHAVRY_CONTROL_DB_URL")
    audit_address: str = setting("BEHAVRY_AUDIT_ADDRESS", derived=socket("audit"))
    entitlements_address: str = setting(
        "BEHAVRY_ENTITLEMENTS_ADDRESS", derived=socket("entitlements")
    )
    token_key: Path = setting(
        "BEHAVRY_CONTROL_TOKEN_KEY", derived=under("state_dir", "keys", "jwt.pem")
    )
    digest_keys: Path = setting(
        "BEHAVRY_DIGEST_KEYS", derived=under("state_dir", "keys", "digest.keys")
    )
    bundle_key: Path = setting(
        "BEHAVRY_CONTROL_BUNDLE_KEY", derived=under("state_dir", "keys", "bundle.pem")
    )
    #: Signs what people decide; its public half is the trust root's role `decision`.
    decision_key: Path = setting(
        "BEHAVRY_CONTROL_DECISION_KEY", derived=under("state_dir", "keys", "decision.pem")
    )
    #: `{plane_id: public JWK of its link key}`.
    plane_keys: Path = setting(
        "BEHAVRY_CONTROL_PLANE_KEYS", derived=under("state_dir", "plane-keys.json")
    )
    page_key: Path = setting(
        "BEHAVRY_CONTROL_PAGE_KEY", derived=under("state_dir", "keys", "page.keys")
    )
    #: What entitlements last said, for a start without it.
    entitlements_copy: Path = setting(
        "BEHAVRY_CONTROL_ENTITLEMENTS_COPY", derived=under("state_dir", "entitlements.copy")
    )
    #: What destinations of notices refer to as `secret://name`.
    secrets_dir: Path = setting("BEHAVRY_SECRETS_DIR", derived=under("state_dir", "secrets"))
    admin_password_file: Path = setting(
        "BEHAVRY_CONTROL_ADMIN_PASSWORD_FILE", derived=under("state_dir", "admin-password")
    )
    admin_api_key_file: Path = setting(
        "BEHAVRY_CONTROL_ADMIN_API_KEY_FILE", derived=under("state_dir", "admin-api-key")
    )
    #: Where several processes count tries together: redis://host:port/db, rediss://..., unix:///path.
    counter_store_url: str = setting("BEHAVRY_COUNTER_STORE_URL", default="")
    counter_store_password_file: Path | None = setting(
        "BEHAVRY_COUNTER_STORE_PASSWORD_FILE", default=None
    )
    max_in_flight: int = setting(
        "BEHAVRY_CONTROL_MAX_IN_FLIGHT", default=256, minimum=1, maximum=4096
    )

    @property
    def peer_token(self) -> Path:
        """Proves control's name to the other services."""
        return self.peers_dir / "control.token"

    @property
    def secure(self) -> bool:
        return urlsplit(self.public_url).scheme == "https"

    def __post_init__(self) -> None:
        """Raises SettingsError where two settings do not go together."""
        check_address(self.counter_store_url)
        public = urlsplit(self.public_url)
        if public.scheme not in {"http", "https"} or not public.hostname or public.path:
            raise SettingsError(
                f"BEHAVRY_CONTROL_PUBLIC_URL={self.public_url!r} cannot be used. "
                "Allowed: http(s)://host[:port] without a path."
            )
        listens_on = self.http_listen.rpartition(":")[0].strip("[]")
        if not self.secure and not {public.hostname, listens_on} <= _LOOPBACK:
            raise SettingsError(
                f"BEHAVRY_CONTROL_PUBLIC_URL={self.public_url!r} with "
                f"BEHAVRY_CONTROL_HTTP_LISTEN={self.http_listen!r} cannot be used: plain HTTP is "
                "allowed on 127.0.0.1, localhost and ::1 alone. Allowed: an https:// address."
            )
