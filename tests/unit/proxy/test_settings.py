"""Settings that this version cannot honour stop the start, by name."""

import pytest

from services.common.settings import SettingsError, load
from services.proxy.settings import ProxySettings


def test_more_workers_than_one_are_refused() -> None:
    with pytest.raises(SettingsError) as refused:
        load(ProxySettings, {"BEHAVRY_PROXY_WORKERS": "2"})

    assert "BEHAVRY_PROXY_WORKERS" in str(refused.value)


def test_everything_has_a_default_below_the_state_directory() -> None:
    settings = load(ProxySettings, {"BEHAVRY_STATE_DIR": "/var/lib/behavry"})

    assert "http://127.0.0.1:8700" == settings.public_url
    assert "unix:/var/lib/behavry/run/authorizer.sock" == settings.authorizer_address
    assert "/var/lib/behavry/stdio.toml" == str(settings.stdio_file)


def test_private_addresses_are_reached_unless_the_plane_says_no() -> None:
    assert "allow" == load(ProxySettings, {}).egress_private
    assert "deny" == load(ProxySettings, {"BEHAVRY_PROXY_EGRESS_PRIVATE": "deny"}).egress_private
    with pytest.raises(SettingsError, match="allow, deny"):
        load(ProxySettings, {"BEHAVRY_PROXY_EGRESS_PRIVATE": "no"})
