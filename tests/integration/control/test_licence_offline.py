"""A licence from its request to its activation where nobody can be reached (E20, E7): the commands
run in a process that may not leave the machine, control and entitlements beside it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from services.common.clock import SystemClock
from services.common.settings import load
from services.control.settings import ControlSettings
from services.entitlements import app as entitlements
from services.entitlements.settings import EntitlementsSettings
from tests.altered import altered
from tests.fakes.asking import ask_until
from tests.fakes.children import ROOT
from tests.fakes.clock import ManualClock
from tests.fakes.licenses import DAY_S, license_token, private_pem
from tests.fakes.postgres import Database
from tests.integration.control import neighbour
from tests.integration.control.conftest import opened
from tests.integration.control.plans import LICENSE, environments

ISSUE: Final = (
    *("--kid", "dev", "--customer", "A customer", "--issuer", "An issuer"),
    *("--plan", "enterprise", "--days", "90"),
)


async def offline(state: Path, *lines: list[str]) -> list[dict[str, Any]]:
    """What each command left, one after the other in one process."""
    kept = {"PATH", "PYTHONPATH", "HOME", "TMPDIR", "COVERAGE_PROCESS_START"}
    environment = {name: value for name, value in os.environ.items() if name in kept}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fakes.offline_child", cwd=ROOT,
        env=environment | {"BEHAVRY_STATE_DIR": str(state), "BEHAVRY_ENV": "development"},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, _ = await process.communicate(json.dumps(lines).encode())
    neighbour.unseen("a command", out)
    told: list[dict[str, Any]] = json.loads(out)
    return told


async def test_from_the_request_to_the_activation_nobody_is_reached(
    state: Path, database: Database, clock: ManualClock, tmp_path: Path
) -> None:
    now_s = SystemClock().now_ns() // 10**9
    clock.set_wall((now_s + 600) * 10**9)  # the commands' clock is the machine's
    file, asked = tmp_path / "license", tmp_path / "request.json"
    key = tmp_path / "private.pem"
    key.write_bytes(private_pem("dev"))
    files = {
        "lapsed": license_token(now_s=now_s, nbf=now_s - 99 * DAY_S, exp=now_s - 15 * DAY_S),
        "forged": altered(license_token(now_s=now_s), at=-10),
        "nonsense": "nothing",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    common = environments(state, database, "development")
    async with (
        entitlements.running(load(EntitlementsSettings, common), clock=clock),
        opened(load(ControlSettings, common), clock, database) as rest,
    ):
        (state / "state.json").write_text(
            json.dumps({
                "version": 1, "plane_id": "dp-local", "proxy_port": 9, "feed_port": 9,
                "control_port": int(rest.base.rpartition(":")[2]), "run_dir": str(state / "run"),
            })
        )  # fmt: skip
        (state / "state.json").chmod(0o600)

        async def known() -> bool:
            said = await rest.get(LICENSE)
            return said.status == 200 and not said.json["stale"]

        await ask_until(known, bool)
        told = await offline(
            state,
            ["license", "request", "--out", str(asked)],
            ["license", "issue", "--signer", str(key), "--id", "one", *ISSUE,
             "--request", str(asked), "--out", str(file)],
            ["license", "inspect", str(file)],
            ["license", "verify", str(file), "--json"],
            *(["license", "verify", str(tmp_path / name)] for name in files),
            ["license", "activate", str(file)],
            ["license", "show", "--json"],
            *(["license", "activate", str(tmp_path / name)] for name in files),
        )  # fmt: skip
        active = (await rest.get(LICENSE)).json

    assert [0, 0, 0, 0, 1, 3, 2, 0, 0, 1, 3, 2] == [one["status"] for one in told], told
    without, beside = told[:7], told[7:]
    assert [0] * 7 == [one["network"] for one in without]
    assert all(one["network"] for one in beside)  # control is on this machine
    assert ("enterprise", "one", 17) == (
        active["license"]["plan"],
        active["license"]["jti"],
        len(active["features"]),
    )
    assert file.read_text().strip() not in "".join(one["out"] + one["err"] for one in told)
