"""`python -m services.audit`: audit as a process."""

from __future__ import annotations

from services.audit.app import running
from services.audit.settings import AuditSettings
from services.common.process import run

if __name__ == "__main__":
    run("audit", AuditSettings, running)
