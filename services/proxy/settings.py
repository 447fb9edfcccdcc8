"""The proxy's settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from services.common.counter_store.address import check_address
from services.common.service_settings import ServiceSettings, socket
from services.common.settings import Resolved, SettingsError, setting, under

_SOCKET: Final = re.compile(r"unix:/[^\s\0]{1,99}")


def _own_socket(resolved: Resolved) -> str:
    return socket("stdio-host" if resolved["role"] == "stdio_host" else "proxy")(resolved)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings(ServiceSettings):
    #: What this process is: a proxy, or the one host of stdio tool servers for several of them.
    role: Literal["proxy", "stdio_host"] = setting("BEHAVRY_PROXY_ROLE", default="proxy")
    http_listen: str = setting("BEHAVRY_PROXY_HTTP_LISTEN", default="127.0.0.1:8700")
    public_url: str = setting(
        "BEHAVRY_PROXY_PUBLIC_URL", derived=lambda resolved: f"http://{resolved['http_listen']}"
    )
    allowed_hosts: tuple[str, ...] = setting("BEHAVRY_PROXY_ALLOWED_HOSTS", default=())
    cors_origins: tuple[str, ...] = setting("BEHAVRY_PROXY_CORS_ORIGINS", default=())
    grpc_listen: str = setting("BEHAVRY_PROXY_GRPC_LISTEN", derived=_own_socket)
    authorizer_address: str = setting("BEHAVRY_AUTHORIZER_ADDRESS", derived=socket("authorizer"))
    audit_address: str = setting("BEHAVRY_AUDIT_ADDRESS", derived=socket("audit"))
    control_public_url: str = setting("BEHAVRY_CONTROL_PUBLIC_URL", default="http://127.0.0.1:8701")
    control_url: str = setting(
        "BEHAVRY_CONTROL_URL", derived=lambda resolved: resolved["control_public_url"]
    )
    decision_timeout_ms: int = setting(
        "BEHAVRY_PROXY_DECISION_TIMEOUT_MS", default=500, minimum=10, maximum=10_000
    )
    #: How long an agent that was let in goes on with a token past its end, while control is away.
    token_grace_s: int = setting(
        "BEHAVRY_PROXY_TOKEN_GRACE_SECONDS", default=86_400, minimum=0, maximum=604_800
    )
    # Some clients give up after 60 s.
    hold_seconds: float = setting("BEHAVRY_HOLD_SECONDS", default=45.0, minimum=0, maximum=55)
    #: Processes on one port. Each has an outbox of its own; what they share is the counter store's.
    workers: int = setting("BEHAVRY_PROXY_WORKERS", default=1, minimum=1, maximum=64)
    #: unix:/path, where the host listens and workers reach it. Empty: one process has its own
    #: children, and several have none.
    stdio_host: str = setting("BEHAVRY_PROXY_STDIO_HOST", default="")
    #: redis://host:port/db, rediss://..., unix:///path. Empty: this process's own memory.
    counter_store_url: str = setting("BEHAVRY_COUNTER_STORE_URL", default="")
    counter_store_password_file: Path | None = setting(
        "BEHAVRY_COUNTER_STORE_PASSWORD_FILE", default=None
    )
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

    def check(self) -> None:
        """Raises SettingsError where two settings do not go together."""
        ServiceSettings.check(self)  # super() does not find its class behind slots
        if self.role == "proxy" and self.workers > 1 and not self.counter_store_url:
            raise SettingsError(
                f"BEHAVRY_PROXY_WORKERS='{self.workers}' needs BEHAVRY_COUNTER_STORE_URL: "
                "workers that share no store would not know what an agent told another of them."
            )
        check_address(self.counter_store_url)
        if self.stdio_host and not _SOCKET.fullmatch(self.stdio_host):
            raise SettingsError(
                f"BEHAVRY_PROXY_STDIO_HOST={self.stdio_host!r} cannot be used. "
                "Allowed: unix:/path of at most 100 bytes, in a directory closed to others."
            )
        if self.role == "stdio_host" and not self.stdio_host:
            raise SettingsError(
                "BEHAVRY_PROXY_ROLE='stdio_host' needs BEHAVRY_PROXY_STDIO_HOST: unix:/path"
            )

    @property
    def stdio_socket(self) -> str:
        """The path of the stdio host's socket; empty where there is none."""
        return self.stdio_host.removeprefix("unix:")

    @property
    def hidden(self) -> tuple[Path, ...]:
        """Directories of ours that a tool server of the same user must not see; outermost only."""
        ours = {
            self.state_dir.resolve(),
            self.run_dir.resolve(),
            self.peers_dir.resolve(),
            self.secrets_dir.resolve(),
            self.outbox_dir.resolve(),
            self.seal_keys.parent.resolve(),
            self.digest_keys.parent.resolve(),
        }
        if self.stdio_host:
            ours.add(Path(self.stdio_socket).resolve().parent)
        return tuple(path for path in sorted(ours) if not any(one in path.parents for one in ours))
