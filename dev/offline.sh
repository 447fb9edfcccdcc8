#!/usr/bin/env bash
# Runs a command where there is no network but loopback: a network namespace of its own. What passes
# here downloads nothing, child processes included. Where namespaces are not to be had it says so
# and runs the command as it is.
set -euo pipefail

# Loopback starts down; `ip` is not on every machine, Python is.
LOOPBACK_UP='
import fcntl, socket, struct
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP | IFF_RUNNING))
'

if [ "$(id -u)" = 0 ]; then
    own=(unshare --net)
else
    own=(unshare --user --map-current-user --keep-caps --net)
fi
if ! "${own[@]}" python3 -c "$LOOPBACK_UP" 2>/dev/null; then
    echo "offline: this machine gives no network namespace; running with the network as it is" >&2
    exec "$@"
fi
exec "${own[@]}" bash -c 'python3 -c "$0" && exec "$@"' "$LOOPBACK_UP" "$@"
