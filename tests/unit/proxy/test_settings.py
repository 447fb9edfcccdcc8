"""Settings that this version cannot honour stop the start, by name."""

import pytest

from services.common.settings import SettingsError, load
from services.proxy.settings import ProxySettings


def refusal(**env: str) -> str:
    with pytest.raises(SettingsError) as refused:
        load(ProxySettings, env)
    return str(refused.value)


def test_several_workers_need_a_store_that_they_share() -> None:
    store = {"BEHAVRY_COUNTER_STORE_URL": "unix:///run/valkey.sock"}

    said = refusal(BEHAVRY_PROXY_WORKERS="2")

    assert said.startswith("BEHAVRY_PROXY_WORKERS='2' needs BEHAVRY_COUNTER_STORE_URL: ")
    assert 2 == load(ProxySettings, {"BEHAVRY_PROXY_WORKERS": "2", **store}).workers
    assert 1 == load(ProxySettings, {}).workers
    assert "to 64" in refusal(BEHAVRY_PROXY_WORKERS="65", **store)
    assert "hunter2" not in refusal(BEHAVRY_COUNTER_STORE_URL="redis://:hunter2@store:6379/0")


def test_a_host_of_stdio_servers_needs_a_socket_of_its_own() -> None:
    env = {"BEHAVRY_STATE_DIR": "/s", "BEHAVRY_PROXY_STDIO_HOST": "unix:/s/run/stdio.sock"}

    host = load(ProxySettings, {**env, "BEHAVRY_PROXY_ROLE": "stdio-host"})

    assert "/s/run/stdio.sock" == host.stdio_socket
    assert "unix:/s/run/stdio-host.sock" == host.grpc_listen
    assert "unix:/s/run/proxy.sock" == load(ProxySettings, env).grpc_listen
    assert "BEHAVRY_PROXY_STDIO_HOST: unix:/path" in refusal(BEHAVRY_PROXY_ROLE="stdio-host")
    assert "unix:/path" in refusal(BEHAVRY_PROXY_STDIO_HOST="http://elsewhere:9000")


def test_a_tool_server_sees_none_of_our_directories() -> None:
    env = {"BEHAVRY_STATE_DIR": "/s", "BEHAVRY_PROXY_STDIO_HOST": "unix:/r/stdio.sock"}

    assert ["/r", "/s"] == [str(path) for path in load(ProxySettings, env).hidden]


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
