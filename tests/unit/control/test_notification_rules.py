"""Addresses that notices never go to, destinations that may be kept, and how long to wait."""

import ipaddress
import re

import pytest

from services.control.notifications import destinations, egress
from services.control.notifications.deliveries import delay_s
from services.control.notifications.destinations import Webhook, check, default_events
from services.control.problems import Refusal


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("169.254.169.254", True), ("169.254.0.1", True), ("::ffff:169.254.169.254", True),
        ("fe80::1", True), ("fd00:ec2::254", True), ("64:ff9b::a9fe:a9fe", True),
        ("2002:a9fe:a9fe::1", True), ("100.100.100.200", True), ("168.63.129.16", True),
        ("0.0.0.0", True), ("::", True), ("224.0.0.1", True), ("ff02::1", True),
        ("255.255.255.255", True), ("::ffff:0.0.0.0", True),
        ("127.0.0.1", False), ("::1", False), ("10.0.0.1", False), ("192.0.2.1", False),
        ("2001:db8::1", False), ("::ffff:192.0.2.1", False), ("169.253.255.255", False),
        ("64:ff9b::c000:201", False),
    ],
)  # fmt: skip
def test_link_and_metadata_are_nobodys_destination(address: str, *, refused: bool) -> None:
    assert refused == egress.is_refused(ipaddress.ip_address(address))


def test_an_address_is_refused_in_its_zone_too() -> None:
    with pytest.raises(egress.AddressRefused):
        egress.check("fe80::1%eth0")
    egress.check("hooks.example")


@pytest.mark.parametrize(
    ("url", "plaintext", "code"),
    [
        ("https://hooks.example/x", False, ""),
        ("https://hooks.example:8443", False, ""),
        ("https://[2001:db8::1]/x", False, ""),
        ("http://127.0.0.1:9/x", False, ""),
        ("http://localhost/x", False, ""),
        ("http://[::1]/x", False, ""),
        ("http://hooks.example/x", True, ""),
        ("http://hooks.example/x", False, "plaintext"),
        ("http://localhost.evil.example/x", False, "plaintext"),
        ("http://127.0.0.1.evil.example/x", False, "plaintext"),
        ("https://user@hooks.example/x", False, "url"),
        ("https://hooks.example/x?key=1", False, "url"),
        ("https://hooks.example/x#key", False, "url"),
        ("https:///x", False, "url"),
        ("https://hooks.example:0/x", False, "url"),
        ("https://[::1/x", False, "url"),
        ("file:///etc/passwd", False, "url"),
        ("https://hooks.example/\u202ex", False, "url"),
    ],
)
def test_an_address_is_kept_where_it_is_safe_to_show_and_to_use(
    url: str, code: str, *, plaintext: bool
) -> None:
    settings = Webhook(url=url, key="secret://key", plaintext=plaintext)
    refused = ""
    try:
        check(settings)
    except Refusal as bad:
        refused = bad.errors[0].code

    assert code == refused


def test_only_who_opens_incidents_is_told_of_ends_unasked() -> None:
    assert "escalation.settled" in default_events("pagerduty")
    assert "escalation.settled" not in default_events("email")
    assert {"escalation.opened", "escalation.half_time"} <= set(default_events("slack"))


def test_a_date_wakes_nobody_unasked_and_everybody_else_hears_of_it() -> None:
    dates = {"license.expiring", "license.grace", "license.lapsed"}

    assert not dates & set(default_events("pagerduty"))
    assert all(dates <= set(default_events(kind)) for kind in ("email", "webhook", "slack"))


def test_waits_double_from_a_second_and_end_at_five_minutes() -> None:
    for attempts in range(1, 40):
        longest = min(2.0 ** (attempts - 1), 300.0)
        for _ in range(20):
            assert max(1.0, 0.75 * longest) <= delay_s(attempts) <= longest


def test_who_asks_for_more_time_gets_it_up_to_five_minutes() -> None:
    assert 60 == delay_s(1, asked_s=60)
    assert 300 == delay_s(1, asked_s=10_000)
    assert 1 == delay_s(1, asked_s=0)


def test_references_are_names_and_nothing_else() -> None:
    pattern = re.compile(destinations.SECRET)

    assert pattern.fullmatch("secret://smtp-password")
    for text in ("smtp-password", "secret://", "secret://../x", "secret://a/b", "secret://a b"):
        assert not pattern.fullmatch(text)
