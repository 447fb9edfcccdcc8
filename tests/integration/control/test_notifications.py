"""Notices from the event to whom they are for: at once, at half of the time, again after failures,
never to the wrong one, never with a secret.
"""

import json
from datetime import datetime
from typing import Any, Final

import pytest

from tests.fakes.asking import ask_until
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.escalated import ESCALATIONS, asked, report, run, signed_in, state_of
from tests.integration.control.planes import linked
from tests.integration.control.receivers import HttpReceiver, http_receiver, mail_receiver
from tests.integration.control.test_agents import GONE, everything_stored
from tests.promises import promise

PATH: Final = "/api/v1/settings/notifications"
KEY: Final = "planted-signing-key-0123456789"
ROUTING: Final = "planted-routing-key-0123456789"
PASSWORD: Final = "planted-mail-password"
HOOK: Final = "/planted-slack-path"


def put_secret(rest: Rest, name: str, value: str) -> str:
    directory = rest.state / "secrets"
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(value + "\n")
    return f"secret://{name}"


def webhook(rest: Rest, url: str) -> dict[str, Any]:
    return {"kind": "webhook", "settings": {"url": url, "key": put_secret(rest, "key", KEY)}}


def pagerduty(rest: Rest, url: str) -> dict[str, Any]:
    key = put_secret(rest, "routing", ROUTING)
    return {"kind": "pagerduty", "settings": {"url": url, "routing_key": key}}


def slack(rest: Rest, url: str) -> dict[str, Any]:
    return {"kind": "slack", "settings": {"url": put_secret(rest, "slack", url + HOOK)}}


def mail(rest: Rest, port: int) -> dict[str, Any]:
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "security": "none",
        "username": "relay",
        "password": put_secret(rest, "mail", PASSWORD),
        "sender": "behavry@corp.example",
        "recipients": ["ann@corp.example"],
    }
    return {"kind": "email", "settings": settings}


async def add(rest: Rest, body: dict[str, Any], name: str = "ops", **options: Any) -> Answered:
    answer = await rest.post(PATH, {"name": name, **body}, **options)
    assert 201 == answer.status, answer.body
    return answer


async def one(rest: Rest, **more: Any) -> str:
    async with linked(rest) as plane:
        return await asked(rest, plane, **more)


async def look(rest: Rest) -> None:
    """The clock was moved: what is due now is looked for."""
    await run(rest, "NOTIFY behavry_notifications")


async def deliveries(rest: Rest, destination: str) -> list[dict[str, Any]]:
    """Oldest first."""
    answer = await rest.get(f"{PATH}/{destination}/deliveries")
    items: list[dict[str, Any]] = answer.json["items"]
    return items[::-1]


async def until(
    rest: Rest, destination: str, event: str = "escalation.opened", **wanted: str
) -> dict[str, Any]:
    """The destination's only delivery of that event, as soon as it is so."""

    async def ask() -> dict[str, Any]:
        found = await deliveries(rest, destination)
        return next((one for one in found if one["event"] == event), {})

    def is_so(found: dict[str, Any]) -> bool:
        return all(str(found.get(name)) == value for name, value in wanted.items())

    return await ask_until(ask, is_so)


async def recorded(rest: Rest, kind: str) -> list[dict[str, Any]]:
    return [r for r in await rest.records() if r["type"] == f"admin.{kind}"]


def told(receiver: HttpReceiver) -> list[tuple[str, str]]:
    """(event, state) of each webhook that came."""
    bodies = [json.loads(got.body) for got in receiver.received]
    return [(body["event"], body["escalation"]["state"]) for body in bodies]


# --- from the event to the people ---------------------------------------------------------------


@promise("notifications:people-are-told")
async def test_each_kind_is_told_of_an_escalation_when_it_is_kept(rest: Rest) -> None:
    accounts = {"relay": PASSWORD}
    async with http_receiver() as receiver, mail_receiver(accounts=accounts) as mails:
        await add(rest, webhook(rest, f"{receiver.url}/hook"), "hook")
        await add(rest, slack(rest, receiver.url), "slack")
        await add(rest, pagerduty(rest, f"{receiver.url}/pd"), "pager")
        await add(rest, mail(rest, mails.port), "mail")
        escalation = await one(rest)
        got = {(await receiver.next()).path for _ in range(3)}
        message = await mails.next()

    assert {"/hook", HOOK, "/pd"} == got
    link = f"http://127.0.0.1:8701/approve/{escalation}"
    assert link in message.get_content()
    assert all(link in r.body.decode() for r in receiver.received)
    for word in ("commits are looked at", "repo/one", "b1:"):  # reason, resource, binding
        assert word not in message.get_content()
        assert all(word not in r.body.decode() for r in receiver.received)


@promise("notifications:half-time")
async def test_half_of_the_time_is_told_while_it_waits(rest: Rest) -> None:
    async with http_receiver() as receiver:
        await add(rest, webhook(rest, receiver.url))
        await one(rest)
        await receiver.next()
        rest.clock.advance(2 * 3600 - 1)
        await look(rest)
        rest.clock.advance(2)
        await look(rest)
        await receiver.next()

    assert [("escalation.opened", "pending"), ("escalation.half_time", "pending")] == told(receiver)


async def test_what_does_not_wait_any_more_has_no_half_time(rest: Rest) -> None:
    async with http_receiver() as receiver:
        destination = (await add(rest, webhook(rest, receiver.url))).json["id"]
        admin = await signed_in(rest)
        first, second = await one(rest), await one(rest, tier="medium")
        await ask_until(  # else the openings are dropped too, where they were not sent yet
            lambda: deliveries(rest, destination),
            lambda found: [one["state"] for one in found].count("delivered") == 2,
        )
        assert 200 == (await admin.act(first, "deny")).status
        async with linked(rest) as plane:
            await report(rest, plane, second, "cancelled", 1)
        await ask_until(
            lambda: deliveries(rest, destination),
            lambda found: (
                sorted(one["state"] for one in found)
                == ["delivered", "delivered", "dropped", "dropped"]
            ),
        )
        rest.clock.advance(3 * 3600)
        await look(rest)
        third = await one(rest)
        await receiver.next()
        await receiver.next()
        last = json.loads((await receiver.next()).body)

    assert third == last["escalation"]["id"]
    assert ["escalation.opened"] * 3 == [event for event, _ in told(receiver)]


async def test_an_incident_is_resolved_by_the_decision(rest: Rest) -> None:
    async with http_receiver(status=202) as receiver:
        await add(rest, pagerduty(rest, receiver.url))
        escalation = await one(rest)
        await receiver.next()
        admin = await signed_in(rest)
        assert 200 == (await admin.act(escalation, "approve")).status
        await receiver.next()
    bodies = [json.loads(got.body) for got in receiver.received]

    assert ["trigger", "resolve"] == [body["event_action"] for body in bodies]
    assert 1 == len({body["dedup_key"] for body in bodies})


async def test_kill_switches_are_told_both_ways(rest: Rest) -> None:
    async with http_receiver() as receiver:
        await add(rest, webhook(rest, receiver.url))
        thrown = await rest.post(
            "/api/v1/kill-switch", {"scope": "class", "subject": "default", "reason": "it deletes"}
        )
        await receiver.next()
        admin = await signed_in(rest)
        path = f"/api/v1/kill-switch/{thrown.json['id']}:release"
        released = await rest.post(path, {"reason": "it is mended"}, key=admin.token)
        assert 200 == released.status, released.body
        await receiver.next()
    bodies = [json.loads(got.body) for got in receiver.received]

    assert ["kill_switch.on", "kill_switch.off"] == [body["event"] for body in bodies]
    assert ("class", "default") == (
        bodies[0]["kill_switch"]["scope"], bodies[0]["kill_switch"]["subject"]
    )  # fmt: skip
    assert "it deletes" not in receiver.received[0].body.decode()


async def test_only_what_was_asked_for_is_told_and_nothing_to_one_that_is_off(rest: Rest) -> None:
    async with http_receiver() as receiver:
        body = webhook(rest, f"{receiver.url}/stops")
        await add(rest, {**body, "events": ["kill_switch.on"]}, "stops")
        off = webhook(rest, f"{receiver.url}/off")
        await add(rest, {**off, "enabled": False}, "off")
        await add(rest, webhook(rest, f"{receiver.url}/all"), "all")
        await one(rest)
        await receiver.next()
        await rest.post(
            "/api/v1/kill-switch", {"scope": "tenant", "reason": "everything stands still"}
        )
        await receiver.next()
        await receiver.next()

    assert ["/all", "/all", "/stops"] == sorted(got.path for got in receiver.received)


async def test_names_chosen_by_agents_and_servers_stay_text(rest: Rest) -> None:
    hostile = "<!channel>\u202e *x* https://evil.example/approve"
    accounts = {"relay": PASSWORD}
    async with http_receiver() as receiver, mail_receiver(accounts=accounts) as mails:
        await add(rest, slack(rest, receiver.url), "slack")
        await add(rest, mail(rest, mails.port), "mail")
        await one(rest, tool=hostile, agent_name="a\r\nBcc: eve@evil.example")
        post = json.loads((await receiver.next()).body)
        message, envelope = await mails.next_envelope()

    assert "<!channel>" not in post["text"]
    assert "&lt;!channel&gt;" in post["text"]
    assert ["ann@corp.example"] == envelope.rcpt_tos
    assert message["Bcc"] is None
    for text in (post["text"], str(message["Subject"]), message.get_content()):
        assert "https://evil.example" not in text
        assert "\u202e" not in text


# --- failures -----------------------------------------------------------------------------------


@promise("notifications:retried")
async def test_a_receiver_that_is_away_is_tried_until_it_is_back(rest: Rest) -> None:
    async with http_receiver() as receiver:
        port = receiver.port
    destination = (await add(rest, webhook(rest, receiver.url))).json["id"]
    escalation = await one(rest)
    first = await until(rest, destination, attempts="1", error="not_reachable")
    rest.clock.advance(2)
    await look(rest)
    await failed_so_often(rest, 2)
    health = (await rest.get(f"{PATH}/{destination}")).json["health"]
    waiting = (await rest.get(f"{ESCALATIONS}/{escalation}")).json
    viewer = (await rest.post("/api/v1/api-keys", {"name": "v", "role": "viewer"})).json["key"]
    banner = (await rest.get(f"{PATH}/health", key=viewer)).json
    assert ("failing", "not_reachable") == (health["state"], health["error"])
    assert {"enabled": 1, "failing": 1, "failing_since": health["failing_since"]} == banner
    assert "queued" == first["state"]
    assert "pending" == waiting["state"]

    async with http_receiver(port=port) as receiver:
        rest.clock.advance(300)
        await look(rest)
        got = await receiver.next()
        after = await until(rest, destination, state="delivered")
        assert first["id"] == got.headers["webhook-id"] == after["id"]

    async def health_now() -> tuple[Any, ...]:
        now = (await rest.get(f"{PATH}/{destination}")).json["health"]
        return tuple(now[name] for name in ("state", "failing_since", "error"))

    # Written after the notice itself.
    await ask_until(health_now, lambda told: told == ("working", None, ""))
    assert 0 == (await rest.get(f"{PATH}/health", key=viewer)).json["failing"]
    for kind in ("failing", "recovered"):
        assert 1 == len(await recorded(rest, f"notification_destination.{kind}")), kind


async def failed_so_often(rest: Rest, times: int) -> None:
    """An attempt counts in its row when it begins; this is when it has ended."""
    failed = rest.running.counters.counter("control.notifications.failed")

    async def count() -> int:
        return failed.value

    await ask_until(count, lambda value: value == times)


async def test_waits_grow_from_a_second_to_five_minutes(rest: Rest) -> None:
    async with http_receiver(status=500) as receiver:
        destination = (await add(rest, webhook(rest, receiver.url))).json["id"]
        await one(rest, tier="low", decide_by_ms=rest.clock.now_ns() // 10**6 + 7 * 86_400_000)
        waits = []
        for attempt in range(1, 13):
            await failed_so_often(rest, attempt)
            found = await until(rest, destination, attempts=str(attempt), error="server_error")
            next_at = datetime.fromisoformat(found["next_at"]).timestamp()
            waits.append(next_at - rest.clock.now_ns() / 1e9)
            rest.clock.advance(301)
            await look(rest)

    assert 1 == round(waits[0], 3)
    assert all(0.7 * 2**n <= waits[n] <= 2**n + 0.001 for n in range(1, 9))
    assert all(225 <= wait <= 300.001 for wait in waits[9:])


async def test_after_a_day_it_is_given_up_and_that_is_recorded(rest: Rest) -> None:
    async with http_receiver(status=503) as receiver:
        destination = (await add(rest, webhook(rest, receiver.url))).json["id"]
        week_ms = 7 * 86_400_000
        escalation = await one(rest, decide_by_ms=rest.clock.now_ns() // 10**6 + week_ms)
        await until(rest, destination, attempts="1", error="server_error")
        rest.clock.advance(24 * 3600 + 1)
        await look(rest)
        await until(rest, destination, state="given_up")
    [lost] = await recorded(rest, "notification.lost")

    assert {"field": "subject", "new": escalation} in lost["changes"]
    assert 1 == len(receiver.received)
    assert "pending" == await state_of(rest, escalation)


async def test_what_would_be_refused_again_is_not_tried_again(rest: Rest) -> None:
    async with http_receiver(status=410) as receiver:
        destination = (await add(rest, webhook(rest, receiver.url))).json["id"]
        await one(rest)
        failed = await until(rest, destination, state="failed")
        rest.clock.advance(300)
        await look(rest)
        assert (1, "refused", None) == (failed["attempts"], failed["error"], failed["next_at"])
    assert 1 == len(receiver.received)
    assert 1 == len(await recorded(rest, "notification.lost"))


async def test_what_cannot_be_read_any_more_is_lost_aloud(rest: Rest) -> None:
    async with http_receiver() as receiver:
        destination = (await add(rest, webhook(rest, receiver.url))).json["id"]
        emptied = "UPDATE control.notification_destinations SET settings = '{}' WHERE id = $1"
        await run(rest, emptied, destination)
        await one(rest)
        await until(rest, destination, state="failed", error="unreadable")
    assert 1 == len(await recorded(rest, "notification.lost"))


async def test_cut_connections_to_the_database_lose_no_notice(rest: Rest) -> None:
    async with http_receiver() as receiver:
        await add(rest, webhook(rest, receiver.url))
        await one(rest)
        await receiver.next()
        await run(
            rest,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        await ask_until(lambda: rest.get("/api/v1/agents"), lambda answer: answer.status == 200)
        escalation = await one(rest)
        body = json.loads((await receiver.next()).body)

    assert escalation == body["escalation"]["id"]


async def test_nobody_waits_for_one_that_does_not_answer(rest: Rest) -> None:
    async with http_receiver() as slow, http_receiver() as quick:
        slow.go_on.clear()
        await add(rest, webhook(rest, slow.url), "slow")
        await add(rest, webhook(rest, quick.url), "quick")
        async with linked(rest) as plane:
            for _ in range(12):
                await asked(rest, plane)
        for _ in range(12):
            await quick.next()
        for _ in range(8):
            await slow.next()

        assert 8 == len(slow.received)  # at the same time; the others wait
        slow.go_on.set()
        for _ in range(4):
            await slow.next()


async def test_a_change_of_the_destination_is_tried_at_once(rest: Rest) -> None:
    async with http_receiver() as receiver:
        made = await add(rest, webhook(rest, "http://127.0.0.1:1"))
        await one(rest)
        await until(rest, made.json["id"], attempts="1", error="not_reachable")
        changed = await rest.call(
            "PATCH", f"{PATH}/{made.json['id']}",
            {"settings": webhook(rest, receiver.url)["settings"]},
            headers={"if-match": made.headers["etag"]},
        )  # fmt: skip
        assert 200 == changed.status, changed.body
        await receiver.next()


# --- REST ---------------------------------------------------------------------------------------


async def test_a_destination_from_its_making_to_its_end(rest: Rest) -> None:
    made = await add(rest, webhook(rest, "https://hooks.example/behavry"))
    path = f"{PATH}/{made.json['id']}"
    read = await rest.get(path)
    assert (made.json, '"1"') == (read.json, read.headers["etag"])
    assert [
        "escalation.opened", "escalation.half_time", "kill_switch.on", "kill_switch.off",
        "license.expiring", "license.grace", "license.lapsed",
    ] == made.json["events"]  # fmt: skip
    assert "unknown" == made.json["health"]["state"]
    assert {"url": "https://hooks.example/behavry", "key": "secret://key", "plaintext": False} == (
        made.json["settings"]
    )

    patch = {"name": "other", "enabled": False}
    unconditional = await rest.call("PATCH", path, patch)
    stale = await rest.call("PATCH", path, patch, headers={"if-match": '"7"'})
    done = await rest.call("PATCH", path, patch, headers={"if-match": '"1"'})
    assert [(428, "precondition_required"), (412, "stale_revision")] == [
        (answer.status, answer.json["code"]) for answer in (unconditional, stale)
    ]
    assert '"1"' == stale.headers["etag"]
    assert (200, "other", False, '"2"') == (
        done.status, done.json["name"], done.json["enabled"], done.headers["etag"]
    )  # fmt: skip
    assert 428 == (await rest.call("DELETE", path)).status
    assert 204 == (await rest.call("DELETE", path, headers={"if-match": '"2"'})).status
    assert 404 == (await rest.get(path)).status
    for verb in ("created", "updated", "deleted"):
        assert 1 == len(await recorded(rest, f"notification_destination.{verb}")), verb


async def test_a_name_is_used_once_and_there_are_at_most_twenty(rest: Rest) -> None:
    for n in range(20):
        await add(rest, webhook(rest, "https://hooks.example/x"), f"d{n:02}")
    body = {"name": "d00", **webhook(rest, "https://hooks.example/x")}
    full = await rest.post(PATH, {**body, "name": "one-more"})
    path = f"{PATH}/{(await rest.get(PATH)).json['items'][1]['id']}"
    renamed = await rest.call("PATCH", path, {"name": "d00"}, headers={"if-match": '"1"'})
    await rest.call("DELETE", path, headers={"if-match": '"1"'})
    taken = await rest.post(PATH, body)

    assert [(409, "conflict")] * 3 == [
        (answer.status, answer.json["code"]) for answer in (full, renamed, taken)
    ]
    first = await rest.get(f"{PATH}?page_size=10")
    second = await rest.get(f"{PATH}?page_size=10&page_token={first.json['next_page_token']}")
    names = [one["name"] for one in first.json["items"] + second.json["items"]]
    assert sorted(names) == names
    assert 19 == len(names)


REFUSED: Final[list[tuple[str, dict[str, Any], str, str]]] = [
    ("webhook", {"url": "http://hooks.example/x"}, "/settings/url", "plaintext"),
    ("webhook", {"url": "https://u:p@hooks.example/x"}, "/settings/url", "url"),
    ("webhook", {"url": "https://hooks.example/x?token=1"}, "/settings/url", "url"),
    ("webhook", {"url": "ftp://hooks.example/x"}, "/settings/url", "url"),
    ("webhook", {"url": "https://hooks.example:99999/x"}, "/settings/url", "url"),
    ("webhook", {"key": KEY}, "/settings/key", "pattern"),
    ("webhook", {"secret": KEY}, "/settings", "unknown_field"),
    ("webhook", {"key": None}, "/settings/key", "not_a_string"),
    ("slack", {"url": "https://hooks.slack.example/T0/B0/x"}, "/settings/url", "pattern"),
    ("pagerduty", {"routing_key": ROUTING}, "/settings/routing_key", "pattern"),
    ("pagerduty", {"severity": "mild"}, "/settings/severity", "not_allowed"),
    ("email", {"password": PASSWORD}, "/settings/password", "pattern"),
    ("email", {"username": ""}, "/settings/password", "incomplete"),
    ("email", {"host": "mail.example"}, "/settings/security", "plaintext"),
    ("email", {"host": "mail.example/x"}, "/settings/host", "pattern"),
    ("email", {"sender": "a\r\nBcc: b@c.example"}, "/settings/sender", "pattern"),
    ("email", {"recipients": ["a@b.example\n"]}, "/settings/recipients/0", "pattern"),
    ("email", {"recipients": []}, "/settings/recipients", "too_few"),
    ("email", {"port": 0}, "/settings/port", "too_small"),
]


async def test_what_a_destination_may_not_say_is_refused_by_pointer(rest: Rest) -> None:
    bodies = {
        "webhook": webhook(rest, "https://hooks.example/x"),
        "slack": slack(rest, "https://hooks.slack.example"),
        "pagerduty": pagerduty(rest, "https://events.pagerduty.example/v2"),
        "email": mail(rest, 25),
    }
    for kind, changes, pointer, code in REFUSED:
        settings = bodies[kind]["settings"] | changes
        answer = await rest.post(PATH, {"name": "x", "kind": kind, "settings": settings})
        assert (422, "validation_failed") == (answer.status, answer.json["code"]), changes
        errors = [(error["pointer"], error["code"]) for error in answer.json["errors"]]
        assert (pointer, code) in errors, (changes, errors)
        assert "planted" not in answer.body.decode()

    assert [] == (await rest.get(PATH)).json["items"]


async def test_in_clear_to_another_machine_only_where_it_says_so(rest: Rest) -> None:
    body = webhook(rest, "http://hooks.example/x")
    body["settings"]["plaintext"] = True

    assert 201 == (await rest.post(PATH, {"name": "x", **body})).status


@promise("notifications:tested")
async def test_each_kind_has_a_test_that_says_what_became_of_it(rest: Rest) -> None:
    accounts = {"relay": PASSWORD}
    async with http_receiver() as receiver, mail_receiver(accounts=accounts) as mails:
        bodies = {
            "hook": webhook(rest, receiver.url),
            "slack": slack(rest, receiver.url),
            "pager": pagerduty(rest, receiver.url),
            "mail": mail(rest, mails.port),
        }
        made = {name: (await add(rest, body, name)).json["id"] for name, body in bodies.items()}
        good = {name: await rest.post(f"{PATH}/{which}:test") for name, which in made.items()}
        (rest.state / "secrets" / "mail").write_text("planted-wrong-password")
        receiver.status = 403
        bad = {name: await rest.post(f"{PATH}/{which}:test") for name, which in made.items()}
        message = await mails.next()

    assert "Test" in message["Subject"]
    assert {"delivered"} == {answer.json["outcome"] for answer in good.values()}
    assert {"hook": 200, "slack": 200, "pager": 200, "mail": 250} == {
        name: answer.json["status"] for name, answer in good.items()
    }
    assert {("failed", "unauthorized")} == {
        (answer.json["outcome"], answer.json["code"]) for answer in bad.values()
    }
    assert 535 == bad["mail"].json["status"]
    assert all("planted" not in answer.body.decode() for answer in bad.values())
    assert 8 == len(await recorded(rest, "notification_destination.tested"))
    states = [one["health"]["state"] for one in (await rest.get(PATH)).json["items"]]
    assert ["failing"] * 4 == states


async def test_a_notice_can_be_sent_again_under_its_own_id(rest: Rest) -> None:
    async with http_receiver() as receiver:
        destination = (await add(rest, webhook(rest, receiver.url))).json["id"]
        await one(rest)
        first = await receiver.next()
        sent = await until(rest, destination, state="delivered")
        path = f"{PATH}/deliveries/{sent['id']}:redeliver"
        keyless = await rest.post(path)
        again = await rest.post(path, headers={"idempotency-key": "k1"})
        second = await receiver.next()
        await until(rest, destination, state="delivered", attempts="2")
        replayed = await rest.post(path, headers={"idempotency-key": "k1"})
        half = await until(rest, destination, "escalation.half_time", state="queued")
        queued = await rest.post(
            f"{PATH}/deliveries/{half['id']}:redeliver", headers={"idempotency-key": "k2"}
        )
        unknown = await rest.post(
            f"{PATH}/deliveries/{GONE}:redeliver", headers={"idempotency-key": "k3"}
        )

    assert (400, "idempotency_key_required") == (keyless.status, keyless.json["code"])
    assert (200, "queued") == (again.status, again.json["state"])
    assert "true" == replayed.headers["idempotency-replayed"]
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == sent["id"]
    assert first.body == second.body
    assert 2 == len(receiver.received)
    assert (409, "conflict") == (queued.status, queued.json["code"])
    assert 404 == unknown.status


async def test_only_an_admin_has_to_do_with_destinations(rest: Rest) -> None:
    made = await rest.post("/api/v1/api-keys", {"name": "a", "role": "policy_author"})
    for method, path in (("GET", ""), ("POST", ""), ("POST", f"/{GONE}:test"),
                         ("GET", f"/{GONE}/deliveries")):  # fmt: skip
        answer = await rest.call(method, PATH + path, key=made.json["key"])
        assert (403, "role_required") == (answer.status, answer.json["code"])


# --- others -------------------------------------------------------------------------------------


async def test_what_one_tenant_is_told_the_other_is_not(rest: Rest, other_key: str) -> None:
    async with http_receiver() as receiver:
        mine = await add(rest, webhook(rest, f"{receiver.url}/mine"))
        await add(rest, webhook(rest, f"{receiver.url}/theirs"), key=other_key)
        await one(rest)
        assert "/mine" == (await receiver.next()).path
        sent = await until(rest, mine.json["id"], state="delivered")
        await rest.post(
            "/api/v1/kill-switch", {"scope": "tenant", "reason": "all of it"}, key=other_key
        )
        assert "/theirs" == (await receiver.next()).path
    match = {"if-match": '"1"', "idempotency-key": "k"}
    path = f"{PATH}/{mine.json['id']}"
    for method, where, body in (
        ("GET", path, None), ("PATCH", path, {"name": "x"}), ("DELETE", path, None),
        ("POST", f"{path}:test", None), ("GET", f"{path}/deliveries", None),
        ("POST", f"{PATH}/deliveries/{sent['id']}:redeliver", None),
    ):  # fmt: skip
        answer = await rest.call(method, where, body, key=other_key, headers=match)
        assert (404, "not_found") == (answer.status, answer.json["code"]), where
    assert 1 == len((await rest.get(PATH, key=other_key)).json["items"])


@promise("notifications:no-secret")
async def test_no_secret_of_a_destination_is_anywhere_but_in_its_file(
    rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    echo = f"you sent {KEY} {ROUTING} {PASSWORD} {HOOK}"
    async with http_receiver(body=echo) as receiver, mail_receiver() as mails:
        mails.accounts = {"relay": PASSWORD}
        bodies = {
            "hook": webhook(rest, receiver.url),
            "slack": slack(rest, receiver.url),
            "pager": pagerduty(rest, receiver.url),
            "mail": mail(rest, mails.port),
        }
        answers = [await add(rest, body, name) for name, body in bodies.items()]
        ids = [answer.json["id"] for answer in answers]
        await one(rest)
        for which in ids:
            await until(rest, which, state="delivered")
        receiver.status, mails.reply = 500, f"554 {PASSWORD}"
        await one(rest)
        for which in ids:
            answers += [await rest.post(f"{PATH}/{which}:test")]
            answers += [await rest.get(f"{PATH}/{which}/deliveries")]
        answers.append(await rest.get(PATH))
    seen = await everything_stored(rest) + "".join(answer.body.decode() for answer in answers)
    written = capsys.readouterr()

    assert "secret://mail" in seen
    assert "notification_failed" in written.out
    assert "planted" not in seen + written.out + written.err
