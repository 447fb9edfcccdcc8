"""Which policy engine a machine runs: OPA where there is one, else the embedded Rego engine."""

import enum
import shutil
from pathlib import Path

from services.cli.output import CommandFailed, Exit

TOOLS = Path(__file__).parents[2] / ".tools" / "bin"


class Engine(enum.Enum):
    """What `BEHAVRY_AUTHORIZER_ENGINE=auto` became."""

    OPA_CHILD = "opa"
    OPA_ELSEWHERE = "opa-url"
    EMBEDDED = "embedded"

    @property
    def setting(self) -> str:
        """The authorizer knows two kinds; where OPA runs is its address's matter."""
        return "embedded" if self is Engine.EMBEDDED else "opa"


def choose(wanted: str, *, opa_url: str) -> Engine:
    """From the setting and what this machine has. Asking for an OPA that is missing is refused."""
    if wanted not in {"auto", "opa", "embedded"}:
        raise CommandFailed(
            f"BEHAVRY_AUTHORIZER_ENGINE={wanted!r} cannot be used. Allowed: auto, opa, embedded.",
            status=Exit.USAGE,
        )
    if wanted == "embedded":
        return Engine.EMBEDDED
    if opa_url:
        return Engine.OPA_ELSEWHERE
    if find_opa() is not None:
        return Engine.OPA_CHILD
    if wanted == "opa":
        raise CommandFailed(
            "BEHAVRY_AUTHORIZER_ENGINE=opa, but there is no `opa` on PATH or in .tools/bin"
            " (`make tools` gets it) and BEHAVRY_OPA_URL is not set",
            status=Exit.USAGE,
        )
    return Engine.EMBEDDED


def find_opa() -> str | None:
    """The `opa` binary on PATH, or the one that `make tools` made."""
    return shutil.which("opa") or shutil.which("opa", path=str(TOOLS))
