"""Each kind of notice as its receiver gets it, over a real connection: shape, proof, failures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.common.ids import TenantId
from services.common.secret_refs import SecretFiles
from services.control.notifications import notices, sending
from services.control.notifications.destinations import (
    Email,
    PagerDuty,
    Settings,
    Slack,
    Webhook,
    read,
)
from services.control.notifications.notices import Event, Notice
from services.control.notifications.sending import Sender, SendFailed
from tests.fakes.clock import ManualClock
from tests.fakes.receivers import http_receiver, mail_receiver

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ESCALATION = "0199d0d0-0000-7000-8000-0000000000e1"
NOTICE = "0199d0d0-0000-7000-8000-0000000000d1"
LINK = f"https://behavry.test/approve/{ESCALATION}"
KEY = "a key of thirty-two characters.."
ROUTING_KEY = "R0UTINGKEY0123456789abcdefabcdef"
PASSWORD = "pass phrase of the relay"


def notice(event: Event = "escalation.opened", **more: Any) -> Notice:
    state = "approved" if event == "escalation.settled" else "pending"
    facts = notices.escalation(
        id=ESCALATION,
        agent_id="0199d0d0-0000-7000-8000-0000000000a1",
        agent="worker-1",
        server="git",
        tool="git_commit",
        action="write",
        codes=["policy_intercept", "blast_radius"],
        tier="medium",
        quorum=2,
        opened_at=AT,
        decide_by=AT + timedelta(hours=4),
        state=state,
    )
    made = Notice(
        id=NOTICE,
        event=event,
        tenant=TenantId("0199d0d0-0000-7000-8000-0000000000f1"),
        tenant_slug="default",
        facts=facts,
        link=LINK,
        at=AT,
    )
    return replace(made, **more)


def stop(event: Event) -> Notice:
    facts = notices.stop(id=ESCALATION, scope="server", subject="git", at=AT)
    return notice(event, facts=facts, link="https://behavry.test/")


A_TEST = replace(notice(), facts=None, event="test", link="https://behavry.test/")


@dataclass(kw_only=True)
class Office:
    """A sender and the directory of its secrets."""

    sender: Sender
    secrets: Path
    clock: ManualClock

    async def send(self, settings: Settings, told: Notice | None = None) -> sending.Sent:
        return await self.sender.send(settings, told or notice())

    async def failure(self, settings: Settings, told: Notice | None = None) -> SendFailed:
        with pytest.raises(SendFailed) as failed:
            await self.send(settings, told)
        return failed.value


@asynccontextmanager
async def an_office(directory: Path, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Office]:
    for name, value in (("key", KEY), ("routing", ROUTING_KEY), ("password", PASSWORD)):
        (directory / name).write_text(value + "\n")
    clock = ManualClock()
    async with sending.opened(SecretFiles(directory), clock, tls=tls) as sender:
        yield Office(sender=sender, secrets=directory, clock=clock)


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with an_office(tmp_path) as made:
        yield made


def webhook(url: str, **more: Any) -> Webhook:
    return Webhook(**{"url": url, "key": "secret://key", "plaintext": False, **more})


def slack(office: Office, url: str) -> Slack:
    (office.secrets / "slack").write_text(url)
    return Slack(url="secret://slack", plaintext=False)


def pagerduty(url: str, **more: Any) -> PagerDuty:
    made = {"routing_key": "secret://routing", "severity": "error", "plaintext": False, **more}
    return PagerDuty(url=url, **made)


def mail(port: int, **more: Any) -> Email:
    made = {
        "host": "127.0.0.1",
        "port": port,
        "security": "none",
        "username": "",
        "password": "",
        "sender": "behavry@corp.example",
        "recipients": ("ann@corp.example", "bob@corp.example"),
        "plaintext": False,
        **more,
    }
    return Email(**made)


# --- webhook ------------------------------------------------------------------------------------


def signed(headers: Mapping[str, str], body: bytes, key: bytes) -> bool:
    """Standard Webhooks, as a receiver would check it: nothing of ours."""
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return f"v1,{wanted}" in headers["webhook-signature"].split(" ")


async def test_a_webhook_is_json_that_is_signed_with_its_id_and_time(office: Office) -> None:
    async with http_receiver() as receiver:
        assert 200 == (await office.send(webhook(f"{receiver.url}/hook"))).status
        got = await receiver.next()

    assert "/hook" == got.path
    assert "application/json" == got.headers["content-type"]
    assert NOTICE == got.headers["webhook-id"]
    assert str(office.clock.now_ns() // 10**9) == got.headers["webhook-timestamp"]
    assert signed(got.headers, got.body, KEY.encode())
    assert {
        "v": "behavry.notification/1",
        "id": NOTICE,
        "event": "escalation.opened",
        "test": False,
        "at": "2026-01-02T03:04:05.000Z",
        "tenant": {"id": "0199d0d0-0000-7000-8000-0000000000f1", "slug": "default"},
        "link": LINK,
        "escalation": {
            "id": ESCALATION,
            "state": "pending",
            "agent": {"id": "0199d0d0-0000-7000-8000-0000000000a1", "name": "worker-1"},
            "server": "git",
            "tool": "git_commit",
            "action": "write",
            "codes": ["policy_intercept", "blast_radius"],
            "tier": "medium",
            "quorum": 2,
            "opened_at": "2026-01-02T03:04:05.000Z",
            "decide_by": "2026-01-02T07:04:05.000Z",
        },
    } == json.loads(got.body)


async def test_the_check_that_is_documented_accepts_it(office: Office) -> None:
    page = (Path(__file__).parents[3] / "docs" / "notifications.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    known: dict[str, Any] = {"base64": base64, "hmac": hmac}
    exec(code, known)
    async with http_receiver() as receiver:
        await office.send(webhook(receiver.url))
        got = await receiver.next()

    assert known["is_ours"](got.headers, got.body, KEY.encode())
    assert not known["is_ours"](got.headers, got.body + b" ", KEY.encode())


async def test_a_changed_id_time_or_body_does_not_fit_the_signature(office: Office) -> None:
    async with http_receiver() as receiver:
        await office.send(webhook(receiver.url))
        got = await receiver.next()
    assert signed(got.headers, got.body, KEY.encode())

    assert not signed({**got.headers, "webhook-id": ESCALATION}, got.body, KEY.encode())
    assert not signed({**got.headers, "webhook-timestamp": "1"}, got.body, KEY.encode())
    assert not signed(got.headers, got.body.replace(b"git", b"gut"), KEY.encode())
    assert not signed(got.headers, got.body, b"another key of many characters..")


async def test_the_same_notice_again_has_its_id_and_bytes_and_a_new_time(office: Office) -> None:
    async with http_receiver() as receiver:
        for _ in range(2):
            await office.send(webhook(receiver.url))
            office.clock.advance(60)
        first, second = receiver.received

    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-timestamp"] != second.headers["webhook-timestamp"]
    assert signed(second.headers, second.body, KEY.encode())


async def test_a_key_may_be_told_in_base64_and_must_be_long(office: Office) -> None:
    raw = bytes(range(32))
    async with http_receiver() as receiver:
        (office.secrets / "key").write_text("whsec_" + base64.b64encode(raw).decode())
        await office.send(webhook(receiver.url))
        got = await receiver.next()
        assert signed(got.headers, got.body, raw)
        for unusable in ("short", "whsec_" + base64.b64encode(b"short").decode(), "whsec_%%%"):
            (office.secrets / "key").write_text(unusable)
            assert "secret_unusable" == (await office.failure(webhook(receiver.url))).code

    assert 1 == len(receiver.received)


# --- Slack --------------------------------------------------------------------------------------


async def test_slack_gets_blocks_of_plain_text_and_one_link_of_ours(office: Office) -> None:
    async with http_receiver() as receiver:
        await office.send(slack(office, f"{receiver.url}/services/T0/B0/s3cr3t"))
        got = await receiver.next()
    told = json.loads(got.body)

    assert "/services/T0/B0/s3cr3t" == got.path
    assert "Approval needed: worker-1 calls git/git_commit" == told["text"]
    marked = [
        b["text"]["text"] for b in told["blocks"] if b.get("text", {}).get("type") == "mrkdwn"
    ]
    assert [f"<{LINK}|Open in Behavry>"] == marked
    assert "Nobody decides by answering" in got.body.decode()
    assert all(word in got.body.decode() for word in ("policy_intercept", ESCALATION, "07:04:05"))


# --- PagerDuty ----------------------------------------------------------------------------------


async def test_pagerduty_opens_one_incident_and_resolves_it(office: Office) -> None:
    events: list[Event] = ["escalation.opened", "escalation.half_time", "escalation.settled"]
    async with http_receiver(status=202) as receiver:
        for event in events:
            await office.send(pagerduty(f"{receiver.url}/v2/enqueue"), notice(event))
    told = [json.loads(got.body) for got in receiver.received]

    assert ["trigger", "trigger", "resolve"] == [one["event_action"] for one in told]
    assert {f"behavry-escalation-{ESCALATION}"} == {one["dedup_key"] for one in told}
    assert {ROUTING_KEY} == {one["routing_key"] for one in told}
    payload = told[0]["payload"]
    assert ("error", "default") == (payload["severity"], payload["source"])
    assert "Approval needed: worker-1 calls git/git_commit" == payload["summary"]
    assert LINK == told[0]["client_url"] == told[0]["links"][0]["href"]
    assert "payload" not in told[2]


async def test_pagerduty_resolves_the_kill_switch_that_it_opened(office: Office) -> None:
    async with http_receiver(status=202) as receiver:
        await office.send(pagerduty(receiver.url), stop("kill_switch.on"))
        await office.send(pagerduty(receiver.url), stop("kill_switch.off"))
    told = [json.loads(got.body) for got in receiver.received]

    assert ["trigger", "resolve"] == [one["event_action"] for one in told]
    assert {f"behavry-kill-switch-{ESCALATION}"} == {one["dedup_key"] for one in told}
    assert "Kill switch on: server git" == told[0]["payload"]["summary"]


# --- mail ---------------------------------------------------------------------------------------


async def test_mail_is_plain_text_from_and_to_whom_it_should_be(office: Office) -> None:
    async with mail_receiver() as receiver:
        assert 250 == (await office.send(mail(receiver.port))).status
        got, envelope = await receiver.next_envelope()

    assert "behavry@corp.example" == envelope.mail_from == got["From"]
    assert ["ann@corp.example", "bob@corp.example"] == envelope.rcpt_tos
    assert "[Behavry] Approval needed: worker-1 calls git/git_commit" == got["Subject"]
    assert f"<{NOTICE}@corp.example>" == got["Message-ID"]
    assert f"<{ESCALATION}@corp.example>" == got["References"]
    assert "auto-generated" == got["Auto-Submitted"]
    assert "text/plain" == got.get_content_type()
    text = got.get_content()
    assert LINK in text
    assert "2026-01-02 07:04:05 UTC" in text
    assert "Nobody decides by answering this message." in text


async def test_mail_signs_in_with_the_password_of_the_reference(office: Office) -> None:
    account = {"username": "relay", "password": "secret://password"}
    async with mail_receiver(accounts={"relay": PASSWORD}) as receiver:
        await office.send(mail(receiver.port, **account))
        await receiver.next()
        receiver.accounts = {"relay": "another"}
        refused = await office.failure(mail(receiver.port, **account))

    assert ["relay"] == receiver.signed_in
    assert ("unauthorized", 535, False) == (refused.code, refused.status, refused.final)


async def test_one_refused_recipient_does_not_keep_it_from_the_other(office: Office) -> None:
    async with mail_receiver(refused={"ann@corp.example"}) as receiver:
        sent = await office.send(mail(receiver.port))
        _, envelope = await receiver.next_envelope()
        receiver.refused.add("bob@corp.example")
        failed = await office.failure(mail(receiver.port))

    assert "recipients_refused" == sent.note
    assert ["bob@corp.example"] == envelope.rcpt_tos
    assert ("recipients_refused", 550, True) == (failed.code, failed.status, failed.final)


@pytest.mark.parametrize(
    ("reply", "code", "final"),
    [("451 later", "deferred", False), ("554 spam", "refused", True)],
)
async def test_what_a_mail_server_says_is_later_or_never(
    office: Office, reply: str, code: str, *, final: bool
) -> None:
    async with mail_receiver(reply=reply) as receiver:
        failed = await office.failure(mail(receiver.port))

    assert (code, int(reply[:3]), final) == (failed.code, failed.status, failed.final)


# --- tests of destinations ----------------------------------------------------------------------


async def test_a_test_says_so_in_every_form(office: Office) -> None:
    async with http_receiver() as receiver, mail_receiver() as mails:
        await office.send(webhook(receiver.url), A_TEST)
        await office.send(slack(office, receiver.url), A_TEST)
        await office.send(pagerduty(receiver.url), A_TEST)
        await office.send(mail(mails.port), A_TEST)
        message = await mails.next()
    told = [json.loads(got.body) for got in receiver.received]

    assert (True, "test") == (told[0]["test"], told[0]["event"])
    assert "escalation" not in told[0]
    assert told[1]["text"].startswith("Test: ")
    assert ["trigger", "resolve"] == [one["event_action"] for one in told[2:]]
    assert "info" == told[2]["payload"]["severity"]
    assert message["Subject"].startswith("[Behavry] Test: ")


# --- what does not arrive -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "final"),
    [
        (301, "redirected", False), (400, "refused", True), (401, "unauthorized", False),
        (403, "unauthorized", False), (404, "not_found", False), (410, "refused", True),
        (413, "refused", True), (429, "rate_limited", False), (500, "server_error", False),
        (503, "server_error", False), (418, "protocol_error", False),
    ],
)  # fmt: skip
async def test_an_answer_is_told_by_its_class_alone(
    office: Office, status: int, code: str, *, final: bool
) -> None:
    headers = {"location": "http://127.0.0.1:1/elsewhere", "retry-after": "7"}
    async with http_receiver(status=status, headers=headers, body="planted-answer") as receiver:
        failed = await office.failure(webhook(receiver.url))

    assert (code, status, final) == (failed.code, failed.status, failed.final)
    assert 1 == len(receiver.received)
    assert "planted" not in repr(failed)
    assert (7 if status in {429, 500, 503} else 0) == failed.after_s


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "[::ffff:169.254.169.254]", "[fe80::1]", "0.0.0.0", "100.100.100.200",
     "[fd00:ec2::254]", "[64:ff9b::a9fe:a9fe]", "224.0.0.1"],
)  # fmt: skip
async def test_nothing_goes_to_the_machines_own_metadata(office: Office, host: str) -> None:
    failed = await office.failure(webhook(f"https://{host}/latest"))
    mailed = await office.failure(mail(25, host=host.strip("[]"), security="tls"))

    assert ["address_refused"] * 2 == [failed.code, mailed.code]


async def test_a_name_is_judged_by_the_address_that_it_leads_to(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    failed = await office.failure(webhook("https://metadata.corp.example/x"))
    mailed = await office.failure(mail(25, host="mail.corp.example", security="tls"))

    assert ["address_refused"] * 2 == [failed.code, mailed.code]


async def test_nothing_leaves_the_machine_in_clear_unless_told(office: Office) -> None:
    away = "http://192.0.2.1/hook"
    refused = [
        await office.failure(webhook(away)),
        await office.failure(pagerduty(away)),
        await office.failure(slack(office, away)),
        await office.failure(mail(25, host="192.0.2.1")),
    ]

    assert ["plaintext_refused"] * 4 == [failed.code for failed in refused]


async def test_where_nobody_listens_nothing_arrives(office: Office) -> None:
    async with http_receiver() as receiver:
        port = receiver.port
    failed = [
        await office.failure(webhook(f"http://127.0.0.1:{port}")),
        await office.failure(mail(port)),
    ]

    assert ["not_reachable"] * 2 == [one.code for one in failed]


async def test_who_does_not_answer_is_left_in_time(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "TIMEOUT_S", 0.1)
    async with http_receiver() as receiver:
        receiver.go_on.clear()
        assert "timed_out" == (await office.failure(webhook(receiver.url))).code
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "timed_out" == (await office.failure(mail(silent.getsockname()[1]))).code


@pytest.mark.parametrize("text", ["", "not a url", "ftp://127.0.0.1/x", "http://[", "/path"])
async def test_a_secret_that_is_no_address_goes_nowhere(office: Office, text: str) -> None:
    assert "secret_unusable" == (await office.failure(slack(office, text))).code


async def test_a_reference_to_nothing_is_told_as_that(office: Office) -> None:
    for settings in (
        webhook("http://127.0.0.1:1", key="secret://absent"),
        pagerduty("http://127.0.0.1:1", routing_key="secret://absent"),
        Slack(url="secret://absent", plaintext=False),
        mail(1, username="relay", password="secret://absent"),
    ):
        failed = await office.failure(settings)
        assert ("secret_unresolved", None, False) == (failed.code, failed.status, failed.final)


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(the server's side, a client that trusts it)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + pem
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cadata=pem.decode())


async def test_what_is_encrypted_arrives_where_the_server_is_known(
    tmp_path: Path, served: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server, trusting = served
    async with (
        an_office(tmp_path, tls=trusting) as office,
        http_receiver(tls=server) as receiver,
        mail_receiver(tls=server) as implicit,
        mail_receiver(starttls=server) as upgraded,
    ):
        await office.send(webhook(receiver.url))
        await office.send(mail(implicit.port, security="tls"))
        await office.send(mail(upgraded.port, security="starttls"))
        await receiver.next()
        await implicit.next()
        await upgraded.next()


async def test_a_server_that_nobody_vouches_for_gets_nothing(
    office: Office, served: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server, _ = served
    async with (
        http_receiver(tls=server) as receiver,
        mail_receiver(tls=server) as implicit,
        mail_receiver(starttls=server) as upgraded,
        mail_receiver() as plain,
    ):
        failed = [
            await office.failure(webhook(receiver.url)),
            await office.failure(mail(implicit.port, security="tls")),
            await office.failure(mail(upgraded.port, security="starttls")),
            await office.failure(mail(plain.port, security="starttls")),
        ]

    assert ["tls_failed"] * 3 + ["protocol_error"] == [one.code for one in failed]
    assert [] == receiver.received
    assert [] == implicit.raw + upgraded.raw + plain.raw


def test_settings_read_back_as_they_were_stored() -> None:
    stored = {"url": "https://a.example/x", "key": "secret://key", "plaintext": False}

    assert webhook("https://a.example/x") == read("webhook", stored)
