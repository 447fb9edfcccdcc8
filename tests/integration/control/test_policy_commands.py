"""`behavry policy` as its own process, against a real control: whoever puts a policy into force is
asked who they are when their sign-in is too old, and what they wanted is done after that.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.control.conftest import Rest
from tests.integration.control.test_policies import PATH, save, standing
from tests.promises import promise

pytestmark = pytest.mark.needs_regorus

#: control.md 4.
TOO_OLD_S = 5 * 60 + 1
NOBODY_CAN_BE_ASKED = 2


@dataclass(frozen=True, slots=True)
class Shell:
    """Where somebody types commands."""

    rest: Rest
    password_file: Path

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Its status, its data, its words."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.cli", *arguments, "--state", str(self.rest.state),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env=dict(os.environ),
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def signs_in(self) -> None:
        done, _, words = await self.run(
            "login", "admin", "--password-file", str(self.password_file)
        )
        assert 0 == done, words

    async def standing(self, policy: str) -> tuple[str, int, int | None]:
        return standing((await self.rest.get(f"{PATH}/{policy}")).json)


@pytest.fixture
def shell(rest: Rest) -> Shell:
    """Its state directory is as `up` leaves it."""
    port = int(rest.running.http_address.rpartition(":")[2])
    document = {"version": 1, "plane_id": "dp-local", "proxy_port": 9, "control_port": port,
                "feed_port": 3, "run_dir": str(rest.state / "run")}  # fmt: skip
    (rest.state / "state.json").write_text(json.dumps(document))
    return Shell(rest, rest.state / "admin-password")


@promise("people:step-up-for-policies")
async def test_a_policy_counts_once_whoever_promotes_it_has_proven_who_they_are(
    rest: Rest, shell: Shell
) -> None:
    policy, _ = await save(rest)
    await shell.signs_in()
    rest.clock.advance(TOO_OLD_S)
    unasked, _, words = await shell.run("policy", "promote", "guard")
    before = await shell.standing(policy["id"])
    with_password = ("--password-file", str(shell.password_file))
    done, data, _ = await shell.run("policy", "promote", "guard", *with_password, "--json")
    again, _, _ = await shell.run("policy", "promote", "guard")

    assert (NOBODY_CAN_BE_ASKED, ("draft", 1, None)) == (unasked, before)
    assert "--password-file" in words
    assert (0, ("enforce", 1, 1)) == (done, standing(json.loads(data)))
    assert 0 == again  # the session is fresh now, and it is the one that was kept
    enforced = [r for r in await rest.records() if r["type"] == "admin.policy.enforce"]
    assert {"user"} == {record["actor"]["kind"] for record in enforced}


@promise("people:step-up-for-policies")
async def test_a_wrong_password_promotes_nothing(rest: Rest, shell: Shell, tmp_path: Path) -> None:
    policy, _ = await save(rest)
    await shell.signs_in()
    rest.clock.advance(TOO_OLD_S)
    wrong = tmp_path / "wrong"
    wrong.write_text("not the password\n")
    refused, _, words = await shell.run("policy", "promote", "guard", "--password-file", str(wrong))

    assert (8, ("draft", 1, None)) == (refused, await shell.standing(policy["id"]))
    assert "step_up_required" in words


@promise("people:step-up-for-policies")
async def test_an_old_version_comes_into_force_by_a_rollback_alike(
    rest: Rest, shell: Shell
) -> None:
    policy, _ = await save(rest)
    await shell.signs_in()
    promoted, _, _ = await shell.run("policy", "promote", "guard")
    rest.clock.advance(TOO_OLD_S)
    unasked, _, _ = await shell.run("policy", "rollback", "guard", "1")
    before = await shell.standing(policy["id"])
    with_password = ("--password-file", str(shell.password_file))
    done, _, _ = await shell.run("policy", "rollback", "guard", "1", *with_password)

    assert (0, NOBODY_CAN_BE_ASKED, 0) == (promoted, unasked, done)
    assert (("enforce", 1, 1), ("enforce", 2, 2)) == (before, await shell.standing(policy["id"]))


async def test_what_puts_nothing_into_force_asks_nobody(rest: Rest, shell: Shell) -> None:
    """The innocent twins: a trial beside traffic, an end, and a machine that nobody can ask."""
    policy, _ = await save(rest)
    await shell.signs_in()
    rest.clock.advance(TOO_OLD_S)
    shadowed, _, _ = await shell.run("policy", "promote", "guard", "--to", "shadow")
    beside = await shell.standing(policy["id"])
    retired, _, _ = await shell.run("policy", "retire", "guard", "--confirm", "guard")
    (rest.state / "session.json").unlink()
    by_key, _, _ = await shell.run("policy", "promote", "guard")

    assert (0, 0, 0) == (shadowed, retired, by_key)
    assert (("shadow", 1, 1), "enforce") == (beside, (await shell.standing(policy["id"]))[0])
