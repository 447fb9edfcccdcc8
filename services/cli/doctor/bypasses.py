"""Whether MCP clients on this machine reach tools past the gateway.

Looks into the files that the known clients keep in the home and in the present directory; a server
that is registered here and dialled there by its own address fails, any other direct one warns.
"""

import json
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.cli import wire
from services.cli.clients import files
from services.cli.clients.catalogue import FILE_CLIENTS, FileClient, Places
from services.cli.clients.jsonc import Malformed
from services.cli.doctor.checks import Check, Installation, fail, ok, warn
from services.cli.output import CommandFailed
from services.cli.rest import Control, read_key


def clients(installation: Installation) -> Iterator[Check]:
    """One check per file that exists."""
    known = _registered(installation)
    programs = _programs(installation)
    found = list(_files(installation))
    if not found:
        yield ok("clients", "no client's file was found here or in the home directory")
    for client, path in found:
        named = f"clients.{client.name}"
        try:
            entries = _entries(client, path)
        except (Malformed, CommandFailed) as bad:
            yield warn(
                named, f"{path} cannot be read: {bad}", "mend the file; its client skips it too"
            )
            continue
        yield _judged(named, path, entries, installation, known=known, programs=programs)


def _judged(
    id: str,
    path: Path,
    entries: Mapping[str, Any],
    installation: Installation,
    *,
    known: Mapping[str, str],
    programs: Mapping[tuple[str, ...], str],
) -> Check:
    gateway = f"http://127.0.0.1:{installation.remembered.proxy_port}/mcp/v1/"
    direct: list[str] = []
    bypassed: dict[str, str] = {}
    for name, entry in entries.items():
        target = files.target(entry)
        if target.startswith(_spellings(gateway)):
            continue
        slug = known.get(_address(target)) or _same_program(entry, programs)
        if slug:
            bypassed[name] = slug
        else:
            direct.append(name)
    if bypassed:
        named = ", ".join(f"{name} (server {slug})" for name, slug in bypassed.items())
        slug = next(iter(bypassed.values()))
        return fail(
            id,
            f"{path}: past the gateway: {named}",
            f"behavry connect {id.split('.')[1]} --server {slug} --write; remove the old entry",
        )
    if direct:
        why = f"{path}: not behind the gateway: {', '.join(direct)}"
        return warn(id, why, "behavry servers add SLUG, then behavry connect")
    return ok(id, f"{path}: {len(entries)} servers, all through the gateway")


def _files(installation: Installation) -> Iterator[tuple[FileClient, Path]]:
    """Each client's usual file, in the home directory too where it looks there."""
    seen: set[Path] = set()
    for root in (installation.project, installation.home):
        places = Places(
            home=installation.home,
            project=root,
            environment=installation.environment,
            platform=sys.platform,
        )
        for client in FILE_CLIENTS.values():
            path = client.file(places)
            if path.is_file() and path.resolve() not in seen:
                seen.add(path.resolve())
                yield client, path
    user = installation.home / ".claude.json"
    if user.is_file():
        yield FILE_CLIENTS["claude-code"], user


def _entries(client: FileClient, path: Path) -> dict[str, Any]:
    """The servers of a file; `.claude.json` keeps some per project as well."""
    text = files.read(path)
    entries = files.configured(client, text)
    if path.name == ".claude.json" and text is not None:
        projects = json.loads(text).get("projects", {})
        for place, project in projects.items() if isinstance(projects, dict) else ():
            for name, entry in _table(project).items():
                entries[f"{name} of {place}"] = entry
    return entries


def _table(project: Any) -> Mapping[str, Any]:
    found = project.get("mcpServers", {}) if isinstance(project, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _address(url: str) -> str:
    """Scheme, host, port and path; loopback spellings are equal."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return ""
    host = "127.0.0.1" if parts.hostname in {"localhost", "::1"} else parts.hostname
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}" if host else ""


def _spellings(gateway: str) -> tuple[str, ...]:
    return (gateway, gateway.replace("127.0.0.1", "localhost"))


def _registered(installation: Installation) -> dict[str, str]:
    """Address -> slug of the servers behind the gateway; none when control does not answer."""
    try:
        control = Control(
            url=f"http://127.0.0.1:{installation.remembered.control_port}",
            credential=read_key(installation.state.admin_api_key),
        )
        items = list(control.items("/api/v1/servers"))
    except (wire.Unreachable, CommandFailed):
        return {}
    return {_address(url): item["slug"] for item in items for url in item["urls"]}


def _programs(installation: Installation) -> dict[tuple[str, ...], str]:
    """Module or program -> name of the stdio servers that the proxy starts."""
    try:
        document = tomllib.loads(installation.state.stdio.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return {}
    return {
        _identity(str(one.get("command", "")), one.get("args", [])): name
        for name, one in document.items()
        if isinstance(one, dict)
    }


def _same_program(entry: Any, programs: Mapping[tuple[str, ...], str]) -> str | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("command"), str):
        return None
    arguments = entry.get("args", [])
    words = [str(one) for one in arguments] if isinstance(arguments, list) else []
    command = shlex.split(entry["command"]) or [""] if not words else [entry["command"]]
    wanted = _identity(command[0], [*command[1:], *words])
    return programs.get(wanted)


def _identity(command: str, arguments: Any) -> tuple[str, ...]:
    """What a command line runs: `-m module`, or a program's name, spelled as a module's."""
    words = [str(one) for one in arguments] if isinstance(arguments, list) else []
    if "-m" in words[:-1]:
        return (words[words.index("-m") + 1],)
    launcher = Path(command).name in {"uvx", "npx", "uv", "pipx"}
    first = next((one for one in words if not one.startswith("-") and one != "run"), "")
    name = first if launcher else Path(command).name
    return (name.replace("-", "_"),)
