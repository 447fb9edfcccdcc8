"""Runs a verification of the chain as a job of control's and waits for its verdict."""

import time
from typing import Any

from services.cli.output import CommandFailed
from services.cli.rest import Control

TIMEOUT_S = 600.0


def verify(control: Control, *, chain: str | None = None) -> dict[str, Any]:
    """The result of one job: `verdict`, `assurance`, and where it broke. Blocks."""
    job = control.post("/api/v1/audit/verify", {} if chain is None else {"chain": chain})
    deadline = time.monotonic() + TIMEOUT_S
    while job["state"] in {"queued", "running"}:
        if time.monotonic() > deadline:
            raise CommandFailed(f"verification {job['id']} is still running")
        time.sleep(0.1)  # noqa: TID251  # a job is asked for its state; its end sends us nothing
        job = control.get(f"/api/v1/jobs/{job['id']}")
    if job["state"] != "succeeded":
        raise CommandFailed(f"verification {job['id']} {job['state']}: {job.get('error') or ''}")
    return dict(job["result"])
