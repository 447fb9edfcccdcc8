"""What can be said of a tool server can be said at a terminal; a secret cannot."""

from typing import Any

import pytest

from services.control.api.servers import NewServer
from tests.fakes.rest import RestControl
from tests.unit.cli.conftest import Run

ADD = "POST /api/v1/servers"
CHANGE = "PATCH /api/v1/servers/files"
REACH = {"slug": "files", "domain": "files", "trust": "untrusted", "transport": "http"}
TOKEN = ("--credential-field", "token_url=https://auth.example/token?a=b")


def sent(run: Run, control: RestControl, *options: str, route: str = ADD) -> Any:
    """The body that control got, which is one that it understands."""
    control.answers[route] = (201, {"slug": "files"})
    verb = "add" if route == ADD else "update"
    told = run("servers", verb, "files", *options)
    assert 0 == told.status, told.err
    [(asked, body, _)] = control.seen
    assert route == asked
    if route == ADD:
        NewServer.model_validate(body)
    return body


def test_where_it_is_suffices(run: Run, control: RestControl) -> None:
    assert {**REACH, "urls": ["https://a/"]} == sent(run, control, "--url", "https://a/")


def test_a_program_is_named(run: Run, control: RestControl) -> None:
    body = sent(run, control, "--stdio", "git", "--share", "server", "--trust", "trusted")

    assert {**REACH, "transport": "stdio", "stdio": "git", "share": "server",
            "trust": "trusted"} == body  # fmt: skip


def test_all_that_can_be_said(run: Run, control: RestControl) -> None:
    body = sent(
        run, control, "--url", "https://a/", "--url", "https://b/", "--transport", "sse",
        "--domain", "docs", "--era", "legacy", "--case-fold", "--header", "X-Region=eu=1",
        "--header", "X-Team=a b", "--ca", "secret://ca.pem", "--first-byte", "600",
        "--no-elicitation-form", "--elicitation-host", "pay.example", "--sampling", "--roots",
        "--extension", "io.modelcontextprotocol/tasks",
    )  # fmt: skip

    assert {
        "slug": "files",
        "domain": "docs",
        "trust": "untrusted",
        "transport": "sse",
        "urls": ["https://a/", "https://b/"],
        "era": "legacy",
        "case_fold": True,
        "headers": {"X-Region": "eu=1", "X-Team": "a b"},
        "ca": "secret://ca.pem",
        "first_byte_s": 600,
        "grants": {
            "elicitation_form": False,
            "elicitation_hosts": ["pay.example"],
            "sampling": True,
            "roots": True,
            "extensions": ["io.modelcontextprotocol/tasks"],
        },
    } == body
    assert set(body) | {"stdio", "share", "credential"} == set(NewServer.model_fields)


def test_a_change_says_what_changes(run: Run, control: RestControl) -> None:
    body = sent(run, control, "--no-sampling", "--empty-header", "--ca", "none",
                "--empty-elicitation-host", route=CHANGE)  # fmt: skip

    assert {
        "headers": {}, "ca": "", "grants": {"sampling": False, "elicitation_hosts": []},
    } == body  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--stdio", "git"), {"transport": "stdio", "urls": [], "stdio": "git"}),
        (
            ("--transport", "http", "--url", "https://a/"),
            {"transport": "http", "urls": ["https://a/"], "stdio": None},
        ),
        (("--url", "https://a/"), {"urls": ["https://a/"]}),
    ],
)
def test_a_server_that_moves_leaves_its_old_address(
    run: Run, control: RestControl, options: tuple[str, ...], expected: dict[str, Any]
) -> None:
    assert expected == sent(run, control, *options, route=CHANGE)


def test_a_change_of_nothing_is_none(run: Run, control: RestControl) -> None:
    told = run("servers", "update", "files")

    assert (2, []) == (told.status, control.seen)


CREDENTIALS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "none": (("none",), {"kind": "none"}),
    "header": (
        ("X-Key=secret://files",),
        {"kind": "header", "name": "X-Key", "value": "secret://files"},
    ),
    "client_credentials": (
        ("client_credentials", *TOKEN, "--credential-field", "client_id=gate",
         "--credential-field", "client_secret=secret://gate", "--credential-field",
         "scope=tools.read tools.write"),
        {"kind": "client_credentials", "token_url": "https://auth.example/token?a=b",
         "client_id": "gate", "client_secret": "secret://gate",
         "scope": "tools.read tools.write"},
    ),
    "jwt_bearer": (
        ("jwt_bearer", *TOKEN, "--credential-field", "key=secret://key", "--credential-field",
         "issuer=gate", "--credential-field", "claims.tier=gold"),
        {"kind": "jwt_bearer", "token_url": "https://auth.example/token?a=b",
         "key": "secret://key", "issuer": "gate", "claims": {"tier": "gold"}},
    ),
    "mtls": (
        ("mtls", "--credential-field", "certificate=secret://c", "--credential-field",
         "key=secret://k"),
        {"kind": "mtls", "certificate": "secret://c", "key": "secret://k"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("route", [ADD, CHANGE])
@pytest.mark.parametrize(("options", "expected"), CREDENTIALS.values(), ids=CREDENTIALS)
def test_every_kind_of_credential(
    run: Run, control: RestControl, options: tuple[str, ...], expected: dict[str, Any], route: str
) -> None:
    body = sent(run, control, "--url", "https://a/", "--credential", *options, route=route)

    assert expected == body["credential"]


@pytest.mark.parametrize(
    "options",
    [
        ("--credential", "X-Key=hunter2"),
        ("--credential", "hunter2"),
        ("--credential", "mtls", "--credential-field", "key=hunter2"),
        ("--credential", "client_credentials", "--credential-field", "client_secret=hunter2"),
        ("--credential-field", "client_secret=hunter2"),
        ("--ca", "hunter2"),
    ],
)
def test_a_secret_itself_goes_nowhere(
    run: Run, control: RestControl, options: tuple[str, ...]
) -> None:
    told = run("servers", "add", "files", "--url", "https://a/", *options)

    assert (2, []) == (told.status, control.seen)
    assert "hunter2" not in told.err + told.out


@pytest.mark.parametrize("options", [("--header", "X"), ("--header", "=x")])
def test_what_is_no_pair_is_said_to_be_none(
    run: Run, control: RestControl, options: tuple[str, ...]
) -> None:
    told = run("servers", "add", "files", *options)

    assert (2, []) == (told.status, control.seen)
    assert "NAME=VALUE" in told.err
