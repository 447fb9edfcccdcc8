"""Starts a tool server in a cage: `python -I launch.py --hide DIR --keep PATH -- command args`.

Run as a script by the stdio host, never imported: nothing but the standard library. Hides the
state directory in a mount namespace (where the system allows one), becomes another user where one
is named (or does not start at all), limits descriptors, ties its life to its parent's and becomes
the command.
"""

import contextlib
import ctypes
import os
import pwd
import resource
import signal
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18
MS_NOSUID, MS_NODEV = 2, 4
PR_SET_PDEATHSIG = 1
MAX_FILES = 1024

libc = ctypes.CDLL(None, use_errno=True)


def check(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def own_namespaces() -> None:
    """A user and a mount namespace in which we are who we were."""
    uid, gid = os.getuid(), os.getgid()
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def hide(directories: list[str], kept: list[str], *, other: bool) -> None:
    """An empty directory lies over each hidden one; kept paths below show through. For `other`
    users, who may pass, and have no right to take a mount off.
    """
    if other:
        check(libc.unshare(CLONE_NEWNS))
    else:
        own_namespaces()
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    open_paths = [(path, os.open(path, os.O_PATH)) for path in kept if Path(path).exists()]
    for directory in directories:
        target = os.fsencode(directory)
        data = b"size=64k,mode=0711" if other else b"size=64k,mode=0700"
        check(libc.mount(b"tmpfs", target, b"tmpfs", MS_NOSUID | MS_NODEV, data))
    for path, fd in open_paths:
        source, shown = f"/proc/self/fd/{fd}", Path(path)
        if Path(source).is_dir():
            shown.mkdir(parents=True, exist_ok=True)
        else:
            shown.parent.mkdir(parents=True, exist_ok=True)
            shown.touch(mode=0o600)
        check(libc.mount(source.encode(), os.fsencode(path), None, MS_BIND | MS_REC, None))
        os.close(fd)
    if not other:
        # A second pair of namespaces locks the mounts: whoever runs in it cannot take them off.
        own_namespaces()


def become(uid: int, home: str) -> None:
    """Another user, for good, who may write where it lives. Else nothing starts."""
    try:
        gid = pwd.getpwuid(uid).pw_gid
    except KeyError:
        gid = uid
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if not os.access(home, os.W_OK | os.X_OK):
        sys.exit("its home cannot be reached")


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    pairs = list(zip(options[::2], options[1::2], strict=True))
    directories = [value for name, value in pairs if name == "--hide"]
    kept = [value for name, value in pairs if name == "--keep"]
    parent = next((int(value) for name, value in pairs if name == "--parent"), os.getppid())
    uid = next((int(value) for name, value in pairs if name == "--uid"), None)
    cwd = Path.cwd()
    if directories:
        before = os.umask(0o022)
        # Forbidden on some systems: the README's limits say what that means.
        with contextlib.suppress(OSError):
            hide(directories, kept, other=uid is not None)
        os.umask(before)
    with contextlib.suppress(OSError):
        os.chdir(cwd)  # the same path, now the one that shows through
    if uid is not None:
        home = next(value for name, value in pairs if name == "--home")
        become(uid, home)  # before the tie, which a change of user unties
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the tie was made
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606  # an argument list, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
