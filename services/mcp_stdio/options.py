"""What the program is told: its command line and its environment.

Decides what can be used at all; everything else ends the start with status 2. Secrets come by the
environment: a command line is there for every process of the machine to read. No message repeats
what was given, since clients keep what a program writes to stderr.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from services.common.settings import SettingsError, load, setting

USAGE: Final = """\
usage: behavry-mcp-stdio --server-url URL [--token-url URL] [--ca FILE]

Speaks MCP on stdin and stdout for the server at URL, which the gateway guards
(https://gateway/mcp/v1/SERVER/key).

environment, for secrets alone:
  BEHAVRY_AGENT_KEY      the agent's key; or
  BEHAVRY_CLIENT_ID      with
  BEHAVRY_CLIENT_SECRET  to be traded for tokens at --token-url
  BEHAVRY_REQUESTER_ID   on whose behalf the agent acts

exit status: 0 end of input, 2 usage, 3 the credential was refused
"""
TOKEN_PATH: Final = "/api/v1/auth/token"  # noqa: S105  # a path
_OPTIONS: Final = ("--server-url", "--token-url", "--ca")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]{1,512}")
_KEY: Final = "bhv_ak_"


class Usage(Exception):
    """The message is complete; the process ends with status 2."""


class HelpWanted(Exception):
    """Somebody asked how to use it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The environment as it is read."""

    agent_key: str = setting("BEHAVRY_AGENT_KEY", default="", secret=True)
    client_id: str = setting("BEHAVRY_CLIENT_ID", default="")
    client_secret: str = setting("BEHAVRY_CLIENT_SECRET", default="", secret=True)
    requester_id: str = setting("BEHAVRY_REQUESTER_ID", default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Either `agent_key` is there, or `client_id` and `client_secret` are."""

    server_url: str
    token_url: str
    ca: Path | None
    agent_key: str = field(repr=False)
    client_id: str
    client_secret: str = field(repr=False)
    requester_id: str


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Raises Usage, HelpWanted."""
    given = _named(arguments)
    if "--server-url" not in given:
        raise Usage("--server-url is missing")
    server_url = _url(given["--server-url"], "--server-url")
    origin = urlsplit(server_url)
    token_url = given.get("--token-url", f"{origin.scheme}://{origin.netloc}{TOKEN_PATH}")
    secrets = _secrets(environment)
    return Options(
        server_url=server_url,
        token_url=_url(token_url, "--token-url"),
        ca=_file(given["--ca"]) if "--ca" in given else None,
        agent_key=secrets.agent_key,
        client_id=secrets.client_id,
        client_secret=secrets.client_secret,
        requester_id=secrets.requester_id,
    )


def _named(arguments: Sequence[str]) -> dict[str, str]:
    """`--name value` and `--name=value`, each once."""
    if any(_KEY in one for one in arguments):
        raise Usage("a key on the command line can be read by everybody; use BEHAVRY_AGENT_KEY")
    found: dict[str, str] = {}
    left = list(arguments)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if name in {"--help", "-h"}:
            raise HelpWanted
        if name not in _OPTIONS:
            raise Usage("an argument is not known; secrets come by the environment alone")
        if name in found:
            raise Usage(f"{name} was given twice")
        if not equals:
            if not left:
                raise Usage(f"{name} needs a value")
            value = left.pop(0)
        found[name] = value
    return found


def _url(raw: str, name: str) -> str:
    try:
        parts = urlsplit(raw)
        port = parts.port
    except ValueError:
        raise Usage(f"{name} is not a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise Usage(f"{name} is not a URL of http or https")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise Usage(f"{name} holds more than an address: credentials come by the environment")
    if parts.scheme == "http" and not _loopback(parts.hostname):
        raise Usage(f"{name}: plain http leads to this machine only, anywhere else needs https")
    return raw


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _file(raw: str) -> Path:
    try:
        ssl.create_default_context(cafile=raw)
    except OSError:  # which ssl.SSLError is one of
        raise Usage("--ca is not a file of certificates") from None
    return Path(raw)


def _secrets(environment: Mapping[str, str]) -> Given:
    try:
        given = load(Given, environment)
    except SettingsError as bad:
        raise Usage(str(bad)) from None
    if given.agent_key and (given.client_id or given.client_secret):
        raise Usage("BEHAVRY_AGENT_KEY and BEHAVRY_CLIENT_ID are two credentials: set one")
    if bool(given.client_id) != bool(given.client_secret):
        raise Usage("BEHAVRY_CLIENT_ID and BEHAVRY_CLIENT_SECRET go together")
    if not given.agent_key and not given.client_id:
        raise Usage("set BEHAVRY_AGENT_KEY, or BEHAVRY_CLIENT_ID and BEHAVRY_CLIENT_SECRET")
    for name, value in (
        ("BEHAVRY_AGENT_KEY", given.agent_key),
        ("BEHAVRY_REQUESTER_ID", given.requester_id),
    ):
        if value and not _HEADER_VALUE.fullmatch(value):
            raise Usage(f"{name} holds what no header can carry")
    return given
