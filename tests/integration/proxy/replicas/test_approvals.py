"""Calls that wait for a person, behind a load balancer that sends each request wherever it likes
(mcp.md 5.2, 8): the tool runs once or not at all, as decided.
"""

import asyncio
from typing import Any

import pytest

from tests.altered import altered
from tests.fakes.authorizer import OTHER_AGENT
from tests.fakes.gateway import Gateway, until
from tests.fakes.people import TASKS, URLS
from tests.fakes.replicas import Two, alone
from tests.fakes.tool_server import ToolServer
from tests.integration.proxy.test_approval_tasks import begin, ended, escalation_of, poll
from tests.integration.proxy.test_pushed import Held
from tests.promises import promise

META = "com.behavry/decision"
pytestmark = pytest.mark.needs_valkey


def only_ticket(pair: Two) -> str:
    (escalation,) = pair.one.authorizer.tickets
    return escalation


async def say(proxy: Gateway, held: Held, id: Any, action: str, **changes: Any) -> int:
    body = {"jsonrpc": "2.0", "id": id, "result": {"action": action}}
    status, _ = await proxy.post(body, **{"headers": held.headers, **changes})
    return status


# --- pages on open streams ----------------------------------------------------------------------


@promise("proxies:no-sticky-routing")
async def test_a_page_that_is_declined_at_the_other_ends_the_call(
    notes: Two, tools: ToolServer
) -> None:
    held = Held(notes.one, await notes.one.open_session(URLS))
    request = await held.next("elicitation/create")
    status = await say(notes.other, held, request["id"], "decline")
    answer = await held.task

    assert 202 == status
    assert "escalation_cancelled" == answer["result"]["_meta"][META]["reason"]
    assert "cancelled" == notes.one.authorizer.tickets[only_ticket(notes)].state
    assert [] == tools.ran()


async def test_a_page_that_is_declined_while_nobody_can_be_told_ends_the_call_too(
    notes: Two, tools: ToolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(notes.one, await notes.one.open_session(URLS))
    request = await held.next("elicitation/create")
    escalation = only_ticket(notes)
    monkeypatch.setattr(notes.one.authorizer, "settle", lambda *_: None)  # it tells no stream
    await say(notes.other, held, request["id"], "decline")
    answer = await held.task

    assert "escalation_cancelled" == answer["result"]["_meta"][META]["reason"]
    assert "pending" == notes.one.authorizer.tickets[escalation].state
    assert [] == tools.ran()


async def test_a_page_is_answered_by_who_was_asked_and_nobody_else(
    notes: Two, tools: ToolServer
) -> None:
    held = Held(notes.one, await notes.one.open_session(URLS))
    request = await held.next("elicitation/create")
    foreign = notes.one.issuer.token(sub=OTHER_AGENT)
    theirs = await notes.other.open_session(URLS, token=foreign)
    second = await notes.other.open_session(URLS)
    refused = [
        await say(notes.other, held, request["id"], "decline", headers=theirs, token=foreign),
        await say(notes.other, held, request["id"], "decline", headers=second),
        await say(notes.other, held, altered(request["id"], -2), "decline"),
    ]
    accepted = await say(notes.other, held, request["id"], "accept")
    assert [] == tools.ran()  # a user's word is no approval
    notes.one.authorizer.settle(only_ticket(notes), "approved")
    answer = await held.task

    assert ([400] * 3, 202) == (refused, accepted)
    assert answer["result"]["isError"] is False
    assert ["c"] == tools.ran()


# --- pages in answers ---------------------------------------------------------------------------


async def write(proxy: Gateway, **more: Any) -> Any:
    params = {"name": "write_note", "arguments": {"call": "c"}, **more}
    _, answer = await proxy.modern("tools/call", params, capabilities=URLS)
    return answer["result"]


def retried(asked: Any, action: str) -> dict[str, Any]:
    return {
        "requestState": asked["requestState"],
        "inputResponses": {"approval": {"action": action}},
    }


async def test_a_retry_at_the_other_runs_what_was_approved(notes: Two, tools: ToolServer) -> None:
    asked = await write(notes.one)
    notes.one.authorizer.settle(only_ticket(notes), "approved")
    done = await write(notes.other, **retried(asked, "accept"))

    assert ("input_required", "complete") == (asked["resultType"], done["resultType"])
    assert done["isError"] is False
    assert ["c"] == tools.ran()


@pytest.mark.parametrize("end", ["decline", "denied", "expired"])
async def test_a_retry_at_the_other_runs_nothing_else(
    notes: Two, tools: ToolServer, end: str
) -> None:
    asked = await write(notes.one)
    if end != "decline":
        notes.one.authorizer.settle(only_ticket(notes), end)
    done = await write(notes.other, **retried(asked, "decline" if end == "decline" else "accept"))

    reason = "escalation_cancelled" if end == "decline" else f"escalation_{end}"
    assert (True, reason) == (done["isError"], done["_meta"][META]["reason"])
    assert [] == tools.ran()


@promise("proxies:once")
async def test_twenty_retries_at_both_run_it_once(notes: Two, tools: ToolServer) -> None:
    asked = await write(notes.one)
    first = only_ticket(notes)
    notes.one.authorizer.settle(first, "approved")
    notes.one.authorizer.rules.decide_ms = 1
    done = await asyncio.gather(
        *(write(pick(notes, at), **retried(asked, "accept")) for at in range(20))
    )

    assert 1 == sum(one["resultType"] == "complete" and one["isError"] is False for one in done)
    assert ["c"] == tools.ran()


def pick(pair: Two, number: int) -> Gateway:
    return pair.other if number % 2 else pair.one


# --- tasks --------------------------------------------------------------------------------------


async def test_the_poll_at_the_other_runs_the_call_once_and_both_tell_its_result(
    notes: Two, tools: ToolServer
) -> None:
    task = await begin(notes.one)
    working = await poll(notes.other, task)
    notes.one.authorizer.settle(escalation_of(task), "approved")
    assert [] == tools.ran()
    done = await ended(notes.other, task)

    assert "working" == working["status"]
    assert ("completed", "c write_note") == (
        done["status"], done["result"]["content"][0]["text"],
    )  # fmt: skip
    assert done == await poll(notes.one, task) == await poll(notes.other, task)
    assert ["c"] == tools.ran()
    assert ["call.held", "call.intent", "call.outcome"] == [
        one["type"] for one in notes.one.records("call.")
    ]
    assert [] == notes.other.records("call.")


@promise("proxies:once")
async def test_twenty_polls_at_both_run_it_once(notes: Two, tools: ToolServer) -> None:
    task = await begin(notes.one)
    notes.one.authorizer.settle(escalation_of(task), "approved")
    done = await asyncio.gather(*(ended(pick(notes, at), task) for at in range(20)))

    assert {"completed"} == {one["status"] for one in done}
    assert ["c"] == tools.ran()


async def test_a_task_at_the_other_is_its_agents_alone(notes: Two, tools: ToolServer) -> None:
    task = await begin(notes.one)
    notes.one.authorizer.settle(escalation_of(task), "approved")
    foreign = {"token": notes.one.issuer.token(sub=OTHER_AGENT)}
    refused = [
        await poll(notes.other, task, **foreign),
        await poll(notes.other, task, "tasks/cancel", **foreign),
        await poll(notes.other, {"taskId": altered(task["taskId"], -2)}),
    ]
    assert [] == tools.ran()
    await ended(notes.other, task)
    after = await poll(notes.other, task, **foreign)  # nor what was kept for its agent

    assert {(-32602, "Task not found")} == {
        (one["error"]["code"], one["error"]["message"]) for one in (*refused, after)
    }
    assert [] == notes.one.authorizer.cancels


@pytest.mark.parametrize("state", ["denied", "expired"])
async def test_a_task_that_was_not_approved_ends_without_a_run(
    notes: Two, tools: ToolServer, state: str
) -> None:
    task = await begin(notes.one)
    notes.one.authorizer.settle(escalation_of(task), state)
    done = await ended(notes.other, task)

    assert f"escalation_{state}" == done["result"]["_meta"][META]["reason"]
    assert [] == tools.ran()


async def test_a_task_that_is_cancelled_at_the_other_is_denied(
    notes: Two, tools: ToolServer
) -> None:
    task = await begin(notes.one)
    acknowledged = await poll(notes.other, task, "tasks/cancel")

    assert {"resultType": "complete"} == acknowledged
    assert "cancelled" == (await poll(notes.other, task))["status"]
    assert "cancelled" == notes.one.authorizer.tickets[escalation_of(task)].state
    assert [] == tools.ran()


async def test_a_result_outlives_the_process_that_ran_the_call(
    notes: Two, tools: ToolServer
) -> None:
    async with alone(notes) as third:
        task = await begin(third)
        notes.one.authorizer.settle(escalation_of(task), "approved")
        done = await ended(third, task)

    assert done == await poll(notes.other, task)
    assert ["c"] == tools.ran()


@promise("proxies:once")
async def test_arguments_that_are_lost_leave_the_approval_to_one_other_call(
    notes: Two, tools: ToolServer
) -> None:
    async with alone(notes) as third:
        task = await begin(third)
    escalation = escalation_of(task)
    notes.one.authorizer.settle(escalation, "approved")
    lost = await poll(notes.other, task)
    assert [] == tools.ran()
    again = [
        await notes.other.call("write_note", {"call": "c"}, capabilities=TASKS) for _ in range(2)
    ]

    assert ("completed", "call_again", escalation) == (
        lost["status"],
        lost["result"]["_meta"][META]["reason"],
        lost["result"]["_meta"][META]["escalation_id"],
    )
    assert [False, "task"] == [
        again[0][1]["result"]["isError"], again[1][1]["result"]["resultType"],
    ]  # fmt: skip
    assert ["c"] == tools.ran()


async def test_a_held_call_is_given_up_at_the_other(notes: Two, tools: ToolServer) -> None:
    held = Held(notes.one, await notes.one.open_session(URLS))
    await held.next("elicitation/create")
    foreign = await notes.other.open_session(URLS)
    for headers in (foreign, held.headers):
        assert 1 == notes.one.running.waiting()
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled",
                "params": {"requestId": "call-1"}}  # fmt: skip
        await notes.other.post(note, headers=headers)
    await until(lambda: notes.one.running.waiting() == 0)
    await held.task
    notes.one.authorizer.settle(only_ticket(notes), "approved")

    assert [] == tools.ran()


# --- all at once --------------------------------------------------------------------------------

ENDS = ("approved", "denied", "cancelled")


async def as_a_task(pair: Two, number: int) -> None:
    """Begun at one, polled and perhaps cancelled at both."""
    end, begun_at = ENDS[number % 3], pick(pair, number // 3)
    task = await begin(begun_at, f"task-{number}-{end}")
    if end == "cancelled":
        await poll(pick(pair, number), task, "tasks/cancel")
    else:
        pair.one.authorizer.settle(escalation_of(task), end)
    ends = await asyncio.gather(*(ended(pick(pair, at), task) for at in range(4)))
    assert 1 == len({one["status"] for one in ends})


async def as_a_page(pair: Two, number: int) -> None:
    """Shown in an answer of one, and retried at both."""
    end = ENDS[number % 3]
    arguments = {"arguments": {"call": f"page-{number}-{end}"}}
    asked = await write(pick(pair, number // 3), **arguments)
    escalation = asked["_meta"][META]["escalation_id"]
    if end != "cancelled":
        pair.one.authorizer.settle(escalation, end)
    action = "decline" if end == "cancelled" else "accept"
    done = await write(pick(pair, number), **retried(asked, action), **arguments)
    reason = {"approved": None, "denied": "escalation_denied", "cancelled": "escalation_cancelled"}
    told = done.get("_meta", {}).get(META, {}).get("reason")
    assert ("complete", reason[end]) == (done["resultType"], told)


@promise("proxies:once")
async def test_many_calls_in_every_way_run_as_decided(notes: Two, tools: ToolServer) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(12):
            group.create_task(as_a_task(notes, number))
            group.create_task(as_a_page(notes, number))

    ran = tools.ran()
    assert len(ran) == len(set(ran))
    assert {f"{way}-{n}-approved" for way in ("task", "page") for n in range(0, 12, 3)} == set(ran)
    intents = [*notes.one.records("call.intent"), *notes.other.records("call.intent")]
    assert len(ran) == len(intents)  # none ran unrecorded, none is recorded twice
