"""`python -m services.proxy`: the proxy as a process."""

from __future__ import annotations

from services.common.process import run
from services.proxy.app import running
from services.proxy.settings import ProxySettings

if __name__ == "__main__":
    run("proxy", ProxySettings, running)
