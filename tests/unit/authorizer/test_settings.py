"""Settings of the authorizer that do not go together stop the start, and say so without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.authorizer.settings import AuthorizerSettings
from services.common.settings import SettingsError, load

ENV = {"BEHAVRY_STATE_DIR": "/state", "BEHAVRY_ENV": "development"}


def settings(**changes: str) -> AuthorizerSettings:
    return load(AuthorizerSettings, {**ENV, **changes})


def test_alone_it_keeps_tickets_and_counts_by_itself() -> None:
    alone = settings()

    assert ("", 1) == (alone.counter_store_url, alone.replicas)
    assert (Path("/state/tickets"), Path("/state/kill")) == (alone.ticket_dir, alone.kill_file)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "rediss://cache.example:6380/1",
        "redis://behavry@cache.example:6379/0",
        "redis://[::1]:6379",
        "unix:///run/valkey.sock",
        "unix:///run/valkey.sock?db=2",
    ],
)
def test_replicas_share_a_store(url: str) -> None:
    shared = settings(BEHAVRY_COUNTER_STORE_URL=url, BEHAVRY_AUTHORIZER_REPLICAS="2")

    assert (url, 2) == (shared.counter_store_url, shared.replicas)


def test_replicas_that_share_nothing_do_not_start() -> None:
    with pytest.raises(SettingsError, match="BEHAVRY_COUNTER_STORE_URL"):
        settings(BEHAVRY_AUTHORIZER_REPLICAS="2")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:planted@127.0.0.1:6379/0",
        "redis://behavry:planted@127.0.0.1:6379/0",
        "redis://127.0.0.1:6379/0?password=planted",
        "unix:///run/valkey.sock?password=planted",
        "unix://behavry:planted@/run/valkey.sock",
        "http://127.0.0.1:6379",
        "127.0.0.1:6379",
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="BEHAVRY_COUNTER_STORE_PASSWORD_FILE") as refused:
        settings(BEHAVRY_COUNTER_STORE_URL=url)

    assert "planted" not in str(refused.value)
