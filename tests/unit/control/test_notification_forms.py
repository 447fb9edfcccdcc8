"""Whatever agents and tool servers call themselves: in a notice it is one line of text."""

import email
import email.policy
import json
import unicodedata
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.ids import TenantId
from services.control.notifications import forms, notices
from services.control.notifications.notices import Escalation, Event, Notice

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = "0199d0d0-0000-7000-8000-0000000000e1"
LINK = f"https://behavry.test/approve/{ID}"
#: All of Unicode, and what markup, headers and links are made of.
HOSTILE = st.text(max_size=300) | st.lists(
    st.sampled_from(
        ["\r\n", "\n", "\r", "\x00", "\u2028", "\u202e", "\u200b", "Bcc: eve@evil.example",
         "<!channel>", "<@U0>", "<https://evil.example|Approve>", "*b*", "`c`", "&lt;", "https://evil.example",
         "www.evil.example", "=?utf-8?b?eA==?=", "\ud800", "\U0001f600", "a" * 100, ": ", "\t"]
    ),
    max_size=8,
).map("".join)  # fmt: skip


def made(name: str, event: Event = "escalation.opened") -> Notice:
    facts = notices.escalation(
        id=ID, agent_id=ID, agent=name, server=name, tool=name, action=name, codes=[name] * 40,
        tier=name, quorum=1, opened_at=AT, decide_by=AT + timedelta(hours=4),
    )  # fmt: skip
    return Notice(
        id=ID, event=event, tenant=TenantId(ID), tenant_slug="default", facts=facts, link=LINK,
        at=AT,
    )  # fmt: skip


def texts(value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case list():
            return [text for item in value for text in texts(item)]
        case dict():
            return [text for item in value.values() for text in texts(item)]
    return []


@given(HOSTILE)
def test_no_name_makes_a_header_or_a_second_part_of_a_mail(name: str) -> None:
    raw = forms.mail(made(name), sender="b@corp.example", recipients=("ann@corp.example",))
    message = email.message_from_bytes(raw, policy=email.policy.default)

    assert {
        "From", "To", "Subject", "Date", "Message-ID", "References", "Auto-Submitted",
        "Content-Type", "Content-Transfer-Encoding", "MIME-Version",
    } == set(message.keys())  # fmt: skip
    assert ("b@corp.example", "ann@corp.example") == (message["From"], message["To"])
    assert not message.is_multipart()
    assert "text/plain" == message.get_content_type()
    assert raw.isascii()
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    assert b"\n" not in raw.replace(b"\r\n", b"")
    text = message.get_content()
    links = [word for word in text.split() if "://" in word]
    assert [LINK] == links
    assert 1 == text.count("Nobody decides by answering")


@given(HOSTILE)
def test_no_name_is_markup_or_a_mention_in_slack(name: str) -> None:
    told = json.loads(forms.slack(made(name)).body)
    marked = [
        b["text"]["text"] for b in told["blocks"] if b.get("text", {}).get("type") == "mrkdwn"
    ]
    shown = [text for block in told["blocks"] for text in texts(block)]

    assert [f"<{LINK}|Open in Behavry>"] == marked
    assert not {"<", ">"} & set(told["text"])
    assert told["text"].count("&") == sum(
        told["text"].count(escape) for escape in ("&amp;", "&lt;", "&gt;")
    )
    assert 1 == sum(text.count("://") for text in [told["text"], *shown])
    assert all(len(text) <= 3000 for text in shown)
    assert len(told["blocks"][0]["text"]["text"]) <= 150


@given(HOSTILE)
def test_no_name_is_more_than_a_value_in_json(name: str) -> None:
    hook = forms.webhook(made(name), key="k" * 24, now_s=1)
    page = forms.pagerduty(made(name), routing_key="r" * 32, severity="critical")
    told, paged = json.loads(hook.body), json.loads(page.body)

    assert {"v", "id", "event", "test", "at", "tenant", "link", "escalation"} == set(told)
    assert len(hook.body) <= 20_000
    assert len(page.body) <= 512 * 1024
    assert len(paged["payload"]["summary"]) <= 1024
    assert len(paged["dedup_key"]) <= 255
    for text in texts(told) + texts(paged):
        assert not {"Cc", "Cf", "Cs", "Zl", "Zp"} & {unicodedata.category(c) for c in text}


@given(HOSTILE)
def test_a_name_keeps_its_place_when_it_is_stored(name: str) -> None:
    facts = made(name).facts
    assert isinstance(facts, Escalation)

    assert facts == notices.decode(notices.encode(facts))
    assert "\\u0000" not in notices.encode(facts)
    assert len(facts.codes) <= notices.MAX_CODES


@pytest.mark.parametrize(
    "name", ["git_commit", "notes.search", "über-agent", "read/file", "日本語", "a b", "it's 100%"]
)
def test_an_honest_name_is_shown_as_it_is(name: str) -> None:
    notice = made(name)
    raw = forms.mail(notice, sender="b@corp.example", recipients=("ann@corp.example",))
    message = email.message_from_bytes(raw, policy=email.policy.default)

    assert f"{name} calls {name}/{name}" in message["Subject"]
    assert f"Tool:           {name}" in message.get_content().splitlines()
    assert f"{name}/{name}" in json.loads(forms.slack(notice).body)["text"]
    assert (
        name == json.loads(forms.webhook(notice, key="k" * 24, now_s=1).body)["escalation"]["tool"]
    )


def test_what_is_too_long_says_that_there_was_more() -> None:
    assert "a" * 79 + "…" == notices.harmless("a" * 81)
    assert "a" * 80 == notices.harmless("a" * 80)


LAPSES = AT + timedelta(days=14)


@pytest.mark.parametrize(
    ("event", "at", "said"),
    [
        ("license.expiring", AT - timedelta(days=7), "The professional plan ends in 7 days"),
        ("license.expiring", AT - timedelta(hours=3), "The professional plan ends in 1 day"),
        ("license.grace", AT, "The professional plan has ended; it lapses in 14 days"),
        ("license.grace", LAPSES, "The professional plan has ended; it lapses in 0 days"),
        (
            "license.lapsed",
            LAPSES,
            "The professional plan has lapsed (EXPIRED); its rules stay in force",
        ),
    ],
)
def test_the_end_of_a_term_says_when_and_what_stays(event: Event, at: datetime, said: str) -> None:
    facts = notices.term(
        id=ID, term=ID, plan="professional", state="EXPIRED", at=at, ends_at=AT, lapses_at=LAPSES,
        changed=["context_gate"],
    )  # fmt: skip
    told = replace(made("one", event), facts=facts, link=notices.link_of("https://b.test", facts))
    document = forms.document(told)["license"]

    assert facts == notices.decode(notices.encode(facts))
    assert said == forms.title(told)
    assert ("Calls", "decided and recorded as before") in forms.details(told)
    assert {"id", "term", "plan", "state", "at", "ends_at", "lapses_at", "changed"} == set(document)
    assert "https://b.test/" == told.link
    assert said in forms.mail(told, sender="b@c.example", recipients=("a@c.example",)).decode()
    assert (
        f"behavry-license-{ID}"
        == json.loads(forms.pagerduty(told, routing_key="r", severity="info").body)["dedup_key"]
    )
    assert said in forms.slack(told).body.decode()
