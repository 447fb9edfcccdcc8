"""`python -m services.authorizer`: the authorizer as a process."""

from __future__ import annotations

from services.authorizer.app import running
from services.authorizer.settings import AuthorizerSettings
from services.common.process import run

if __name__ == "__main__":
    run("authorizer", AuthorizerSettings, running)
