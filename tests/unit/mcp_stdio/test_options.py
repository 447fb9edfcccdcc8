"""What the program can be told, and that nothing which it refuses is repeated."""

from pathlib import Path

import pytest

from services.mcp_stdio.options import HelpWanted, Usage, read
from tests.fakes.certificates import Authority

KEYED = {"BEHAVRY_AGENT_KEY": "bhv_ak_a.b"}
URL = "https://gw.example/mcp/v1/git/key"


def test_a_key_and_an_address_are_enough() -> None:
    options = read(["--server-url", URL], KEYED)

    assert (URL, "bhv_ak_a.b", None) == (options.server_url, options.agent_key, options.ca)
    assert "bhv_ak_a.b" not in repr(options)


def test_tokens_come_from_the_gateway_unless_another_address_is_named() -> None:
    traded = {"BEHAVRY_CLIENT_ID": "i", "BEHAVRY_CLIENT_SECRET": "hidden"}
    usual = read(["--server-url=https://gw.example:8/mcp/v1/git"], traded)
    other = read(["--server-url", URL, "--token-url=https://other/token"], traded)

    assert "https://gw.example:8/api/v1/auth/token" == usual.token_url
    assert "https://other/token" == other.token_url
    assert "hidden" not in repr(usual)


def test_a_file_of_certificates_must_be_there(tmp_path: Path) -> None:
    there, empty = tmp_path / "ca.pem", tmp_path / "empty.pem"
    there.write_text(Authority().pem)
    empty.touch()

    assert there == read(["--server-url", URL, "--ca", str(there)], KEYED).ca
    for wrong in (empty, tmp_path / "none", tmp_path):
        with pytest.raises(Usage):
            read(["--server-url", URL, "--ca", str(wrong)], KEYED)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8/mcp/v1/a", "http://localhost/x", "http://[::1]:9/x", "http://127.9.9.9/x"],
)
def test_plain_http_leads_to_this_machine(url: str) -> None:
    assert url == read(["--server-url", url], KEYED).server_url


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--server-url"],
        ["--server-url", "http://gw.example/mcp/v1/a"],
        ["--server-url", "http://127.0.0.1.example/"],
        ["--server-url", "ftp://127.0.0.1/"],
        ["--server-url", "https://"],
        ["--server-url", "https://gw.example:99999/"],
        ["--server-url", "https://user:planted@gw.example/"],
        ["--server-url", "https://gw.example/?key=planted"],
        ["--server-url", "https://gw.example/#planted"],
        ["--server-url", URL, "--server-url", URL],
        ["--server-url", URL, "--token-url", "http://gw.example/"],
        ["--server-url", URL, "--agent-key", "planted"],
        ["--server-url", URL, "--agent-key=planted"],
        ["--server-url", URL, "--client-secret", "planted"],
        ["--server-url", URL, "bhv_ak_planted.planted"],
        ["--server-url", "https://gw.example/bhv_ak_planted.planted"],
    ],
)
def test_what_cannot_be_used_is_refused_and_not_repeated(arguments: list[str]) -> None:
    with pytest.raises(Usage) as refused:
        read(arguments, KEYED)

    assert "planted" not in str(refused.value)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"BEHAVRY_AGENT_KEY": ""},
        {"BEHAVRY_CLIENT_ID": "planted"},
        {"BEHAVRY_CLIENT_SECRET": "planted"},
        {**KEYED, "BEHAVRY_CLIENT_ID": "planted", "BEHAVRY_CLIENT_SECRET": "planted"},
        {"BEHAVRY_AGENT_KEY": "planted\nx-api-key: y"},
        {**KEYED, "BEHAVRY_REQUESTER_ID": "planted planted"},
    ],
)
def test_one_credential_that_a_header_can_carry_is_needed(environment: dict[str, str]) -> None:
    with pytest.raises(Usage) as refused:
        read(["--server-url", URL], environment)

    assert "planted" not in str(refused.value)


def test_help_is_given_without_anything_else() -> None:
    with pytest.raises(HelpWanted):
        read(["--help"], {})
