"""`behavry connect`: points an MCP client at a server behind the gateway.

Prints the configuration by default. `--write` puts it into the client's own file: it shows the
difference, asks, keeps a backup, and changes nothing else there; a second run changes nothing.
"""

import difflib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from services.cli import asking
from services.cli.clients import files
from services.cli.clients.catalogue import (
    CODE_CLIENTS,
    FILE_CLIENTS,
    KEY_VARIABLE,
    NO_KEY,
    PROGRAM,
    Endpoint,
    FileClient,
    Places,
)
from services.cli.clients.jsonc import CannotEdit, Malformed
from services.cli.commands.options import (
    JsonOption,
    StateOption,
    existing_state,
    machine_control,
    proxy_url,
)
from services.cli.output import CommandFailed, Exit, emit, emit_text, say
from services.cli.state import State
from services.cli.wire import Unreachable
from services.common.clock import SystemClock
from services.common.settings import environment

Name = Literal[
    "claude-code", "claude-desktop", "cursor", "vscode", "codex", "openai-agents", "langchain"
]
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"bhv_ak_[A-Za-z0-9._~-]+")


def connect(
    client: Annotated[Name, Parameter(help="Which client.")],
    /,
    *,
    server: Annotated[str, Parameter("--server", help="The server's slug.")],
    write: Annotated[
        bool, Parameter("--write", negative=(), help="Into the client's own file.")
    ] = False,
    status: Annotated[
        bool, Parameter("--status", negative=(), help="Only say how the file stands to it.")
    ] = False,
    remove: Annotated[
        bool, Parameter("--remove", negative=(), help="Take the entry out of the file again.")
    ] = False,
    file: Annotated[
        Path | None, Parameter("--file", help="Another file than the client's usual one.")
    ] = None,
    key_env: Annotated[
        str, Parameter("--key-env", help="The variable that holds the agent's key.")
    ] = KEY_VARIABLE,
    gateway: Annotated[
        str | None, Parameter("--gateway", help="The gateway's address, if it is not this one's.")
    ] = None,
    yes: Annotated[bool, Parameter("--yes", negative=(), help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, Parameter("--dry-run", negative=(), help="Show the difference, write nothing.")
    ] = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Print how a client reaches a server through the gateway, or write it down for it."""
    if write + status + remove > 1:
        raise CommandFailed("--write, --status, --remove: one of them", status=Exit.USAGE)
    endpoint = _endpoint(server, gateway=gateway, key_env=key_env, state=state)
    if client in CODE_CLIENTS:
        if write or status or remove:
            raise CommandFailed(f"{client} is code: there is no file to change", status=Exit.USAGE)
        snippet = CODE_CLIENTS[client].snippet(endpoint)
        emit({"client": client, "snippet": snippet}) if json else emit_text(snippet)
        return
    chosen = FILE_CLIENTS[client]
    target = file or chosen.file(_places())
    if status:
        _status(chosen, endpoint, target, as_json=json)
    elif remove:
        _change(chosen, endpoint, target, away=True, yes=yes, dry_run=dry_run)
    elif write:
        if chosen.holds_key:
            endpoint = replace(endpoint, key=_key(endpoint, needed=not dry_run))
        _change(chosen, endpoint, target, away=False, yes=yes, dry_run=dry_run)
    else:
        _print(chosen, endpoint, target, state=state, as_json=json)


def _endpoint(server: str, *, gateway: str | None, key_env: str, state: Path | None) -> Endpoint:
    """1. the names  2. the gateway's address  3. that it has such a server, if control answers."""
    if not _VARIABLE.fullmatch(key_env):
        raise CommandFailed(f"{key_env!r} cannot be a variable's name", status=Exit.USAGE)
    if gateway is not None:
        if not re.fullmatch(r"https?://[^\s/\"'<>]+", gateway.rstrip("/")):
            raise CommandFailed("--gateway is http(s)://host:port", status=Exit.USAGE)
        address = gateway.rstrip("/")
        return Endpoint(server=server, gateway=address, key_variable=key_env, program=_program())
    found = existing_state(state)
    endpoint = Endpoint(
        server=server, gateway=proxy_url(found), key_variable=key_env, program=_program()
    )
    try:
        known = {one["slug"] for one in machine_control(found).items("/api/v1/servers")}
    except Unreachable:
        say("nothing runs here now, so nobody knows whether there is such a server")
        return endpoint
    if server not in known:
        raise CommandFailed(
            f"there is no server {server!r}; there are: {', '.join(sorted(known)) or 'none'}"
        )
    return endpoint


def _program() -> str:
    """Where it lies, if it was installed beside this command: who starts from a desktop has not the
    shell's path.
    """
    beside = Path(sys.executable).parent / PROGRAM
    return str(beside) if beside.is_file() else PROGRAM


def _key(endpoint: Endpoint, *, needed: bool) -> str:
    """The key, from its variable: a command line would show it to the whole machine."""
    key = environment().get(endpoint.key_variable, "")
    if _KEY.fullmatch(key):
        return key
    if needed:
        raise CommandFailed(
            f"this client expands no variables, so its file holds the key itself: set"
            f" {endpoint.key_variable} to an agent's key (bhv_ak_...) and run this again",
            status=Exit.USAGE,
        )
    return NO_KEY


def _places() -> Places:
    return Places(
        home=Path.home(), project=Path.cwd(), environment=environment(), platform=sys.platform
    )


def _print(
    client: FileClient, endpoint: Endpoint, target: Path, *, state: Path | None, as_json: bool
) -> None:
    text = files.with_entry(client, endpoint, None)
    if as_json:
        emit(
            {
                "client": client.name,
                "file": str(target),
                "format": client.format,
                "key_variable": endpoint.key_variable,
                "text": text,
            }
        )
        return
    say(f"Into {target} (or run this again with --write):")
    emit_text(text.rstrip("\n"))
    for line in [*client.hint(endpoint), *_key_lines(endpoint, state)]:
        say(line)


def _key_lines(endpoint: Endpoint, given: Path | None) -> list[str]:
    """Where the key comes from: the agents' key files of this installation, or a new agent."""
    try:
        found: State | None = existing_state(given)
    except CommandFailed:
        found = None
    keys = sorted(found.agents.glob("*.key")) if found else []
    lines = [f'  export {endpoint.key_variable}="$(cat {key})"' for key in keys]
    if lines:
        return ["The key of an agent that has a file here:", *lines]
    return ["A key: behavry agents enroll NAME --role ROLE --out FILE"]


def _status(client: FileClient, endpoint: Endpoint, target: Path, *, as_json: bool) -> None:
    try:
        found = files.shown(client, endpoint, files.read(target))
    except Malformed as bad:
        raise CommandFailed(f"{target} cannot be read: {bad}") from None
    if as_json:
        emit({"client": client.name, "file": str(target), "state": found.state})
    else:
        emit_text(f"{found.state}: {endpoint.server} in {target}")
    if found.state != "connected":
        raise CommandFailed(_MEANING[found.state], status=Exit.DIFFERENCE)


_MEANING: dict[files.State, str] = {
    "stale": "the entry leads to the gateway, but is not as it would be written now",
    "other": "the entry of that name does not lead through the gateway",
    "absent": "there is no such entry",
}


def _change(
    client: FileClient,
    endpoint: Endpoint,
    target: Path,
    *,
    away: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """1. read  2. edit, or refuse  3. show  4. ask  5. back up and write."""
    before = files.read(target)  # 1
    try:
        found = files.shown(client, endpoint, before)
        if found.state == ("absent" if away else "connected"):
            say(f"nothing to do: {endpoint.server} is {found.state} in {target}")
            return
        if away and found.state == "other":
            raise CommandFailed(f"not ours, so it stays: {_MEANING['other']}")
        after = (  # 2
            files.without_entry(client, endpoint, before or "")
            if away
            else files.with_entry(client, endpoint, before)
        )
    except Malformed as bad:
        raise CommandFailed(f"{target} is not valid, and nothing was written: {bad}") from None
    except CannotEdit as why:
        raise CommandFailed(
            f"{target}: {why}. Nothing was written; without --write this command prints what to"
            " put there."
        ) from None
    (emit_text if dry_run else say)(_difference(before or "", after, target))  # 3
    if dry_run:
        return
    asking.consent(f"Write {target}?", given=yes)  # 4
    backup = files.write(  # 5
        target, after, before=before, clock=SystemClock(), private=client.holds_key
    )
    say(f"wrote {target}" + (f"; as it was: {backup}" if backup else ""))
    if not away:
        for line in client.hint(endpoint):
            say(line)


def _difference(before: str, after: str, target: Path) -> str:
    """Keys are masked: what is shown to people is kept by terminals and logs."""
    old, new = (_KEY.sub("bhv_ak_...", text).splitlines() for text in (before, after))
    lines = list(difflib.unified_diff(old, new, str(target), f"{target} (new)", lineterm=""))
    return "\n".join(lines) or f"{target}: another key in the entry, nothing else"
