"""`python -m services.proxy`: the proxy as a process."""

from __future__ import annotations

import gc

from services.common.process import run
from services.proxy.app import running
from services.proxy.settings import ProxySettings

if __name__ == "__main__":
    # Calls leave no cycles behind: looking for some every 700 objects is a tenth of the work.
    gc.set_threshold(20_000, 20, 50)
    run("proxy", ProxySettings, running)
