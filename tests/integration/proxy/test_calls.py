"""Governed calls through the running proxy: real HTTP in and out, real outbox, told authorizer."""

from pathlib import Path

from tests.fakes import tool_server
from tests.fakes.gateway import gateway, http_server


async def test_an_allowed_call_runs_and_a_denied_one_does_not(tmp_path: Path) -> None:
    with tool_server.serving(tmp_path / "tools") as tools:
        assert tools.url is not None
        async with gateway(tmp_path / "state", {"notes": http_server(tools.url)}) as proxy:
            await proxy.offered("notes", "read_note", "drop_notes")
            proxy.authorizer.rules.verdicts["notes", "drop_notes"] = ("deny", "no_deleting")

            allowed_status, allowed = await proxy.call("read_note", {"call": "c1", "text": "hi"})
            denied_status, denied = await proxy.call("drop_notes", {"call": "c2"})

            assert (200, 200) == (allowed_status, denied_status)
            assert "c1 read_note hi" == allowed["result"]["content"][0]["text"]
            assert denied["result"]["isError"] is True
            decision = denied["result"]["_meta"]["com.behavry/decision"]
            assert ("deny", "no_deleting") == (decision["verdict"], decision["reason"])
            assert ["c1"] == tools.ran()
            kinds = [one["type"] for one in proxy.records("call.")]
            assert ["call.intent", "call.outcome", "call.denied"] == kinds
            assert decision["decision_id"] == proxy.records("call.denied")[0]["id"]
