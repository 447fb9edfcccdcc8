"""A feature that is switched for a tenant counts at control within two seconds, and at the plane a
tenth of its poll interval later at most (E9): through all five real processes, told by link.

That it counts is the plane's own word: the bundle that the authorizer keeps once it decides by it,
and the bundle's serial in the record of the next call.
"""

import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from services.authorizer.settings import AuthorizerSettings
from services.common.settings import load
from tests.fakes.children import ROOT
from tests.fakes.stack import Stack, until
from tests.fakes.tool_server import ToolServer
from tests.journeys.agents import register
from tests.journeys.people import Person, signed_in
from tests.journeys.test_governed_call import CALL, approve, behind, fresh, records_of
from tests.promises import promise

CONTROL_S: Final = 2.0
WHY: Final = {"x-behavry-reason": "a test looks how fast it counts"}


@contextmanager
def operator(stack: Stack) -> Iterator[Person]:
    """The first admin, who runs the installation until the block ends."""
    name = stack.up.admin.username

    def admin(*arguments: str) -> None:
        command = [sys.executable, "-m", "services.cli", "admin", *arguments]
        subprocess.run(
            [*command, "--state", stack.up.state_dir], cwd=ROOT, check=True, capture_output=True
        )

    admin("grant", name, "--confirm", name)
    try:
        yield signed_in(stack)
    finally:
        admin("revoke", name)


def poll_s(stack: Stack) -> int:
    """As the running authorizer has it: nothing sets another one."""
    env = {"BEHAVRY_STATE_DIR": stack.up.state_dir, "BEHAVRY_ENV": "development"}
    settings = load(AuthorizerSettings, env)
    return settings.poll_s


def kept(stack: Stack) -> tuple[int, dict[str, str]]:
    """The newest bundle at the plane: its serial, and the tenant's modes in it."""
    newest = max((Path(stack.up.state_dir) / "bundles").glob("*.tar.gz"))
    with tarfile.open(fileobj=io.BytesIO(newest.read_bytes()), mode="r:gz") as tar:
        data = tar.extractfile("data.json")
        assert data is not None
        state = json.loads(data.read())["behavry"]["state"]
    modes: dict[str, str] = state["tenants"][stack.tenant()]["modes"]
    return int(newest.name.partition(".")[0]), modes


def timed(true: Callable[[], bool], what: str) -> float:
    """When it is so, on the clock that the machine shares."""
    until(true, what, look_again_s=0.01)
    return time.monotonic()


@promise("plans:modes-in-bundles")
def test_an_override_counts_at_control_and_soon_after_at_the_plane(
    running_stack: Stack, tool_server: ToolServer
) -> None:
    stack = running_stack
    slug = behind(stack, tool_server)
    agent = register(stack, fresh("reader"), f"{slug}:read")
    approve(stack, slug, agent, {"read_note": "read"})
    control, plane = [], []
    with operator(stack) as person:
        path = f"/api/v1/tenants/{stack.tenant()}/features"

        def shown(key: str) -> str:
            features = stack.rest.get("/api/v1/license")["features"]
            return next(str(one["mode"]) for one in features if one["key"] == key)

        def switch(wanted: dict[str, Any], key: str, mode: str) -> int:
            began = time.monotonic()
            person.rest.call("POST", path, wanted, headers=WHY)
            counted = timed(lambda: shown(key) == mode, f"{key} is {mode} at control")
            arrived = timed(lambda: kept(stack)[1][key] == mode, f"{key} is {mode} at the plane")
            control.append(counted - began)
            plane.append(arrived - counted)
            return kept(stack)[0]

        serials = [
            switch({"enable": ["saml_sso"]}, "saml_sso", "on"),
            switch({"disable": ["saml_sso", "community_library"]}, "saml_sso", "kept"),
            switch({"clear": ["saml_sso", "community_library"]}, "community_library", "on"),
        ]
    stack.ask(slug, agent.token, "tools/call", CALL)
    until(lambda: bool(records_of(stack, agent, "call.intent")), "the call is chained")
    record = records_of(stack, agent, "call.intent")[0]

    sys.stderr.write(f"control {max(control):.2f} s, plane {max(plane):.2f} s more\n")
    assert max(control) <= CONTROL_S
    assert max(plane) <= poll_s(stack) / 10
    assert serials == sorted(set(serials))
    assert record["revision"]["bundle_serial"] >= serials[-1]
