"""One client's configuration file: read, compared, changed by one entry, written with a backup.

Decides what of an entry is ours: an address of our gateway's for that server. A file that is not
in its own format is never written.
"""

import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from services.cli.clients import jsonc, toml_text
from services.cli.clients.catalogue import (
    KEY_VARIABLE,
    NO_KEY,
    PROGRAM,
    VSCODE_INPUT,
    Endpoint,
    FileClient,
    vscode_input,
)
from services.cli.clients.jsonc import Malformed
from services.cli.output import CommandFailed
from services.common.clock import Clock, rfc3339

#: connected: our entry as it should be. stale: ours, but of another form or address. other: an
#: entry of that name that does not go through the gateway. absent: none, or no file.
State = Literal["connected", "stale", "other", "absent"]
MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a file holds under the server's name."""

    state: State
    entry: Any


def read(file: Path) -> str | None:
    """The text; None where there is no file. Raises CommandFailed when it cannot be read."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise CommandFailed(f"{file} is larger than 1 MiB")
        return raw.decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as failure:
        raise CommandFailed(f"cannot read {file}: {failure}") from None


def configured(client: FileClient, text: str | None) -> dict[str, Any]:
    """The entries of a file by name. Raises Malformed."""
    if text is None or not text.strip():
        return {}
    document = toml_text.parse(text) if client.format == "toml" else jsonc.parse(text)
    entries = document.get(client.table, {}) if isinstance(document, Mapping) else None
    if not isinstance(entries, Mapping):
        raise Malformed(f"`{client.table}` is not a table of servers")
    return dict(entries)


def shown(client: FileClient, endpoint: Endpoint, text: str | None) -> Shown:
    """How the file stands to what it should hold; without a key to compare, any key will do.
    Raises Malformed.
    """
    entry = configured(client, text).get(endpoint.server)
    if entry is None:
        return Shown(state="absent", entry=None)
    ready = _asks(client, text)
    if client.holds_key and endpoint.key == NO_KEY:
        endpoint = replace(endpoint, key=_key_in(entry))
        ready = bool(endpoint.key)
    if ready and entry == client.entry(endpoint):
        return Shown(state="connected", entry=entry)
    return Shown(state="stale" if is_ours(entry, endpoint) else "other", entry=entry)


def is_ours(entry: Any, endpoint: Endpoint) -> bool:
    """Whether an entry leads to the gateway's address of that server, in any of its forms."""
    ours = endpoint.url.removesuffix("/key")
    return target(entry).rstrip("/") in {ours, f"{ours}/key"}


def target(entry: Any) -> str:
    """The address that an entry leads to, by itself or by our program; else empty."""
    if not isinstance(entry, Mapping):
        return ""
    url, command, arguments = (entry.get(name) for name in ("url", "command", "args"))
    if isinstance(command, str) and Path(command).stem == PROGRAM and isinstance(arguments, list):
        after = [*arguments, ""]
        url = next((after[n + 1] for n, one in enumerate(arguments) if one == "--server-url"), "")
    return url if isinstance(url, str) else ""


def _key_in(entry: Any) -> str:
    """The key that an entry holds, if it is one."""
    given = entry.get("env") if isinstance(entry, Mapping) else None
    key = given.get(KEY_VARIABLE) if isinstance(given, Mapping) else None
    return key if isinstance(key, str) and key != NO_KEY else ""


def with_entry(client: FileClient, endpoint: Endpoint, text: str | None) -> str:
    """The file's text with our entry. Raises Malformed, CannotEdit."""
    entry, path = client.entry(endpoint), (client.table, endpoint.server)
    if client.format == "toml":
        return toml_text.edit(text or "", path, entry)
    if text is None or not text.strip():
        text = "{}\n"
    after = jsonc.edit(text, path, entry)
    if client.name == "vscode" and not _asks(client, text):
        after = jsonc.append(after, ("inputs",), vscode_input())
    return after


def without_entry(client: FileClient, endpoint: Endpoint, text: str) -> str:
    """The file's text without our entry. Raises Malformed, CannotEdit."""
    path = (client.table, endpoint.server)
    if client.format == "toml":
        return toml_text.remove(text, path)
    after = jsonc.remove(text, path)
    if client.name == "vscode" and VSCODE_INPUT not in json.dumps(configured(client, after)):
        place = _input_place(after)
        after = after if place is None else jsonc.remove(after, ("inputs", place))
    return after


def _asks(client: FileClient, text: str | None) -> bool:
    """VS Code's entries need the question that they refer to."""
    return client.name != "vscode" or _input_place(text or "{}") is not None


def _input_place(text: str) -> int | None:
    inputs = jsonc.parse(text).get("inputs", [])
    if not isinstance(inputs, list):
        return None
    ids = [one.get("id") if isinstance(one, Mapping) else None for one in inputs]
    return ids.index(VSCODE_INPUT) if VSCODE_INPUT in ids else None


def write(
    file: Path, text: str, *, before: str | None, clock: Clock, private: bool = False
) -> Path | None:
    """Replace the file as a whole, keeping its mode and what it links to; answers the backup's
    path, None where there was no file. `before`: what it must still hold. `private`: it, or what
    it was, holds a key, and nobody but its owner may read either.
    """
    if read(file) != before:
        raise CommandFailed(f"{file} has just been changed by somebody else; nothing was done")
    real = file.resolve()
    backup = None
    mode = 0o600
    if real.exists():
        mode = stat.S_IMODE(real.stat().st_mode) & (0o700 if private else 0o777)
        stamp = rfc3339(clock.now_ns())[:19].replace(":", "").replace("-", "")
        backup = _new_name(real.with_name(f"{real.name}.behavry-{stamp}.bak"))
        _replace(backup, real.read_bytes(), mode)
    real.parent.mkdir(parents=True, exist_ok=True)
    _replace(real, text.encode(), mode)
    return backup


def _new_name(wanted: Path) -> Path:
    name, number = wanted, 1
    while name.exists():
        number += 1
        name = wanted.with_suffix(f".{number}.bak")
    return name


def _replace(file: Path, content: bytes, mode: int) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as making:
            making.write(content)
            making.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)
