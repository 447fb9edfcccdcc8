"""`python -m services.entitlements`: the entitlements service as a process."""

from __future__ import annotations

from services.common.process import run
from services.entitlements.app import running
from services.entitlements.settings import EntitlementsSettings

if __name__ == "__main__":
    run("entitlements", EntitlementsSettings, running)
