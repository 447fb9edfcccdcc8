"""The state directory of a standalone installation: where each file lies, who holds it, what is
remembered.

Decides paths, the lock that keeps a second `up` away, and the small document (`state.json`) of what
must stay the same over restarts. What the files contain is made in `secrets_made.py`.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.cli.output import CommandFailed, Exit

SOCKET_PATH_MAX = 100  # sun_path holds 104 to 108 bytes, its NUL among them
_LONGEST_SOCKET = ".s.PGSQL.5432"
VERSION = 1


@dataclass(frozen=True, slots=True)
class State:
    """Paths below one state directory."""

    root: Path

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def peers(self) -> Path:
        return self.root / "peers"

    @property
    def passfiles(self) -> Path:
        return self.root / "passfiles"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def agents(self) -> Path:
        return self.root / "agents"

    @property
    def admin_password(self) -> Path:
        return self.root / "admin-password"

    @property
    def admin_api_key(self) -> Path:
        return self.root / "admin-api-key"

    @property
    def session(self) -> Path:
        """Who is signed in at the command line."""
        return self.root / "session.json"

    @property
    def kill_file(self) -> Path:
        """What this machine stops by itself, with or without control."""
        return self.root / "kill"

    @property
    def trust(self) -> Path:
        return self.root / "trust.json"

    @property
    def plane_keys(self) -> Path:
        return self.root / "plane-keys.json"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def stdio(self) -> Path:
        return self.root / "stdio.toml"

    @property
    def demo_repo(self) -> Path:
        return self.root / "demo-repo"

    @property
    def remembered_file(self) -> Path:
        return self.root / "state.json"

    @property
    def running_file(self) -> Path:
        return self.root / "running.json"

    @property
    def lock(self) -> Path:
        return self.root / "up.lock"

    def log_of(self, process: str) -> Path:
        return self.logs / f"{process}.log"


def open_state(root: Path) -> State:
    """The directory, made 0700 where it is missing; one that others may enter is refused."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_closed(root)
    state = State(root.resolve())
    for directory in (
        state.keys,
        state.peers,
        state.passfiles,
        state.logs,
        state.agents,
        state.secrets,
    ):
        directory.mkdir(mode=0o700, exist_ok=True)
    return state


def check_closed(root: Path) -> None:
    """Raises CommandFailed unless nobody but us may enter."""
    facts = root.stat()
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise CommandFailed(
            f"{root} must belong to you and be closed to others (chmod 700)", status=Exit.USAGE
        )


def runtime_dir(state: State, remembered: str | None) -> Path:
    """Where the sockets lie: in the state directory, or in a short place if their paths would not
    fit.
    """
    inside = state.root / "run"
    if len(os.fsencode(inside / _LONGEST_SOCKET)) <= SOCKET_PATH_MAX:
        inside.mkdir(mode=0o700, exist_ok=True)
        return inside
    if remembered is not None and _is_ours(Path(remembered)):
        return Path(remembered)
    import tempfile  # noqa: PLC0415  # most commands make none

    return Path(tempfile.mkdtemp(prefix="behavry-"))


def _is_ours(directory: Path) -> bool:
    try:
        facts = directory.lstat()
    except OSError:
        return False
    return facts.st_uid == os.geteuid() and not facts.st_mode & 0o077 and directory.is_dir()


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What later starts must find unchanged: tokens name the addresses and the plane."""

    plane_id: str
    proxy_port: int | None = None
    control_port: int | None = None
    feed_port: int | None = None
    run_dir: str | None = None

    def with_ports(self, *, proxy: int, control: int, feed: int) -> "Remembered":
        return replace(self, proxy_port=proxy, control_port=control, feed_port=feed)


def recall(state: State) -> Remembered:
    """The remembered document; where there is none, a new plane, which is remembered at once."""
    try:
        document = json.loads(state.remembered_file.read_bytes())
    except FileNotFoundError:
        made = Remembered(plane_id=f"dp-{os.urandom(6).hex()}")
        remember(state, made)
        return made
    if document.pop("version", None) != VERSION:
        raise CommandFailed(f"{state.remembered_file} is of another version of this program")
    return Remembered(**document)


def remember(state: State, remembered: Remembered) -> None:
    """Write the document, durably."""
    document = {name: getattr(remembered, name) for name in remembered.__slots__}
    write_json(state.remembered_file, {"version": VERSION, **document})


def write_json(path: Path, document: Any) -> None:
    """Replace a 0600 file as a whole."""
    write_text(path, json.dumps(document, indent=2))


def write_text(path: Path, text: str) -> None:
    """Replace a 0600 file as a whole."""
    making = path.with_name(f".{path.name}.making")
    descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    making.replace(path)


def proxy_workers(run_dir: Path, pid: int) -> list[int]:
    """The proxy's processes behind this one, which was started; none where that is all."""
    try:
        known = json.loads((run_dir / "proxy-workers.json").read_bytes())
    except FileNotFoundError:
        return []
    return list(known["workers"]) if known["supervisor"] == pid else []


@contextmanager
def hold(state: State) -> Iterator[None]:
    """Be the one `up` of this directory; CommandFailed with the other's pid when there is one.

    The kernel drops the lock with its holder, so nothing stale ever needs removing.
    """
    descriptor = os.open(state.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode().strip()
            raise CommandFailed(
                f"already running on {state.root} (pid {pid}); `behavry down` stops it"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(state: State) -> int | None:
    """The pid of the running `up`, if there is one."""
    try:
        descriptor = os.open(state.lock, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode().strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
    return None
