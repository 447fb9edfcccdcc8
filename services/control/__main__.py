"""`python -m services.control`: the control plane as a process."""

from __future__ import annotations

from services.common.process import run
from services.control.app import running
from services.control.settings import ControlSettings

if __name__ == "__main__":
    run("control", ControlSettings, running)
