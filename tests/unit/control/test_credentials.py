"""Keys, secrets, page tokens and limits as values."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.control import api_keys, credentials, idempotency
from services.control.credentials import StoredSecret
from services.control.limits import Merging, TooMany, Window
from services.control.page_tokens import PageTokens
from tests.fakes.clock import ManualClock

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TENANT = TenantId("0199d0d0-0000-7000-8000-000000000001")
OTHER = TenantId("0199d0d0-0000-7000-8000-000000000002")


def test_an_api_key_is_read_back_from_its_text() -> None:
    key = api_keys.new_key("local")

    assert key == api_keys.parse(key.text)
    assert key.is_stored_as(key.secret_sha256)
    assert not api_keys.new_key("local").is_stored_as(key.secret_sha256)


def test_any_single_wrong_character_breaks_the_checksum() -> None:
    text = api_keys.new_key("local").text
    for at in range(len(text)):
        wrong = text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]
        assert api_keys.parse(wrong) is None, at


@given(st.text(max_size=200))
def test_no_other_text_is_an_api_key(text: str) -> None:
    assert api_keys.parse(text) is None


def test_a_key_shows_no_secret_when_it_is_printed() -> None:
    key = api_keys.new_key("local")

    assert key.secret not in repr(key)
    assert key.secret not in key.prefix


def test_a_secret_is_found_among_the_live_ones_alone() -> None:
    old, new = credentials.new_secret(), credentials.new_secret()
    kept = [
        StoredSecret(id="old", secret_sha256=credentials.stored(old), expires_at=NOW),
        StoredSecret(id="new", secret_sha256=credentials.stored(new), expires_at=None),
    ]

    def found(secret: str, at: datetime) -> str | None:
        match = credentials.matching(kept, secret, at)
        return match.id if match else None

    assert ("old", "new") == (found(old, NOW - timedelta(seconds=1)), found(new, NOW))
    assert [None, None, None] == [found(old, NOW), found("", NOW), found("guess", NOW)]
    assert credentials.matching([], new, NOW) is None


@given(st.text(max_size=300))
def test_a_page_token_leads_back_to_where_it_was_made(after: str) -> None:
    tokens = PageTokens(b"k" * 32)

    assert after == tokens.read(TENANT, "agents", tokens.make(TENANT, "agents", after))


def test_a_page_token_of_another_tenant_list_or_key_is_refused() -> None:
    tokens = PageTokens(b"k" * 32)
    token = tokens.make(TENANT, "agents", "x")
    tries = [
        (tokens, OTHER, "agents", token),
        (tokens, TENANT, "roles", token),
        (PageTokens(b"l" * 32), TENANT, "agents", token),
        (tokens, TENANT, "agents", token + "AAAA"),
        (tokens, TENANT, "agents", ""),
        (tokens, TENANT, "agents", "!"),
    ]
    for reader, tenant, listing, text in tries:
        with pytest.raises(BehavryError) as refused:
            reader.read(tenant, listing, text)
        assert "INVALID_PAGE_TOKEN" == refused.value.reason


def test_a_window_opens_again_when_its_oldest_entry_leaves() -> None:
    clock = ManualClock()
    window = Window(clock, limit=2, seconds=60)
    window.take("a")
    clock.advance(30)
    window.take("a")
    with pytest.raises(TooMany) as full:
        window.take("a")
    assert 30 == full.value.retry_after_s
    window.take("b")

    clock.advance(30)
    window.take("a")
    with pytest.raises(TooMany):
        window.take("a")


def test_a_flood_of_keys_does_not_fill_the_memory() -> None:
    window = Window(ManualClock(), limit=2, seconds=60)
    for n in range(30_000):
        window.take(n)

    assert 20_000 == len(window._entries)


def test_beyond_ten_a_minute_failures_are_counted_and_told_later() -> None:
    clock = ManualClock()
    merging = Merging(clock)

    assert [1] * 10 + [0] * 5 == [merging.admit("a") for _ in range(15)]
    assert 1 == merging.admit("b")
    clock.advance(61)
    assert [6, 1] == [merging.admit("a"), merging.admit("a")]


def test_what_is_told_once_is_not_kept_for_a_repetition() -> None:
    kept = idempotency.kept_answer(b'{"id": "1", "client_secret": "s", "token": "t"}')

    assert b'{"id": "1", "client_secret": null, "token": null}' == kept
    assert b"" == idempotency.kept_answer(b"")


def test_requests_are_alike_only_in_every_part() -> None:
    prints = {
        idempotency.fingerprint(path, query, body)
        for path in ("/a", "/ab")
        for query in (b"", b"b")
        for body in (b"", b"{}")
    }

    assert 8 == len(prints)


def test_a_stored_secret_shows_nothing_when_it_is_printed() -> None:
    kept = StoredSecret(id="x", secret_sha256=b"\x01" * 32, expires_at=None)

    assert "x01" not in repr(replace(kept, id="y"))
