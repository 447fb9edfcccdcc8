"""The settings that every service has; each service's own settings extend this class."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from services.common.ids import PlaneId
from services.common.settings import Resolved, SettingsError, environment, setting, under

#: No user name, no path: an address and nothing secret.
_ENDPOINT: Final = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+")


def default_state_dir(_: Resolved) -> Path:
    """The XDG data directory (XDG Base Directory Specification 0.8)."""
    env = environment()
    data_home = env.get("XDG_DATA_HOME") or str(Path(env.get("HOME", "/")) / ".local" / "share")
    return Path(data_home) / "behavry"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Paths default below the state directory, so that in standalone a service needs only that."""

    state_dir: Path = setting("BEHAVRY_STATE_DIR", derived=default_state_dir)
    env: Literal["production", "development"] = setting("BEHAVRY_ENV", default="production")
    mode: Literal["standalone", "control_plane", "data_plane"] = setting(
        "BEHAVRY_MODE", default="standalone"
    )
    run_dir: Path = setting("BEHAVRY_RUN_DIR", derived=under("state_dir", "run"))
    peers_dir: Path = setting("BEHAVRY_PEERS_DIR", derived=under("state_dir", "peers"))
    plane_id: PlaneId = setting("BEHAVRY_PLANE_ID", default=PlaneId("dp-local"))
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "BEHAVRY_LOG_LEVEL", default="info"
    )
    #: http(s)://host:port of an OTLP/gRPC collector. Empty: nothing is exported.
    otlp_endpoint: str = setting("BEHAVRY_OTLP_ENDPOINT", default="")
    otlp_sample_percent: int = setting(
        "BEHAVRY_OTLP_SAMPLE_PERCENT", default=10, minimum=0, maximum=100
    )
    otlp_interval_ms: int = setting(
        "BEHAVRY_OTLP_INTERVAL_MS", default=10_000, minimum=100, maximum=600_000
    )

    def check(self) -> None:
        """Raises SettingsError where settings cannot be used together; `load` calls it."""
        if self.otlp_endpoint and not _ENDPOINT.fullmatch(self.otlp_endpoint):
            raise SettingsError(
                f"BEHAVRY_OTLP_ENDPOINT={self.otlp_endpoint!r} cannot be used. "
                "Allowed: http://host:port, https://host:port, or nothing."
            )


def socket(name: str) -> Callable[[Resolved], str]:
    """Derived default of a gRPC address: `unix:<run_dir>/<name>.sock`."""
    return lambda resolved: f"unix:{resolved['run_dir']}/{name}.sock"
