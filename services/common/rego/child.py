"""The embedded engine's process: loads policies, evaluates items one by one by rule path.

Evaluation holds the interpreter lock and may crash the process, so only a child can be held to a
deadline, killed, or crash alone. It decides nothing: what an answer means is its parent's work.
Never the library's bytecode VM, which silently answers unlike OPA (core.md 5).

`python -m services.common.rego.child SOCKET_FD PROGRESS_FD`
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import regorus

from services.common.rego import frames, tree
from services.common.rego.guard_index import GuardIndex
from services.common.rego.guards import Guards, guards_of

#: Answers leave together unless one took longer than this: the parent sees where it got stuck.
FLUSH_AFTER_S: Final = 0.02
KEPT_REVISIONS: Final = 2
MEMORY_LIMIT_BYTES: Final = 2 << 30
_PR_SET_PDEATHSIG: Final = 1
_CANARY: Final = "package behavry.canary\n\nanswer := input.asked + 2\n"


class LoadRefused(Exception):
    """These modules cannot be loaded; the text names no policy text."""


class LoadedTenant:
    """One interpreter with a tenant's modules, prepared, and the index of its policies."""

    def __init__(self, spec: frames.ChildTenant, data: bytes | None) -> None:
        self._engine = regorus.Engine()
        try:
            for path, source in spec.modules.items():
                self._engine.add_policy(path, source)
            if data is not None:
                self._engine.add_data_json(data.decode())
            modules = tree.modules(json.loads(self._engine.get_ast_as_json()))
            self._engine.set_input_json("{}")
            self._enforced = _Group(modules, [p for p in spec.policies if not p.shadow])
            self._shadowed = _Group(modules, [p for p in spec.policies if p.shadow])
            for policy in spec.policies[:1]:  # the first evaluation prepares the interpreter
                with contextlib.suppress(RuntimeError):
                    self._engine.eval_rule_as_json(policy.entry)
        except RuntimeError:
            raise LoadRefused("a module cannot be compiled") from None

    def evaluate(self, item: msgspec.Raw, *, shadow: bool) -> frames.Item:
        group = self._shadowed if shadow else self._enforced
        said: list[str] = []
        try:
            document = msgspec.json.decode(item)
            self._engine.set_input_json(bytes(item).decode())
            for policy in group.candidates(document):
                with contextlib.suppress(RuntimeError) if shadow else contextlib.nullcontext():
                    verdicts = self._engine.eval_rule_as_json(policy.entry)
                    if verdicts != "[]":
                        said.append(f"[{policy.quoted_key},{verdicts}]")
        except (RuntimeError, ValueError, TypeError, RecursionError):
            return frames.Item(error=frames.ERROR)
        return frames.Item(said=msgspec.Raw(f"[{','.join(said)}]".encode()))


class _Entry:
    def __init__(self, policy: frames.ChildPolicy) -> None:
        self.entry = policy.entry
        self.quoted_key = json.dumps(policy.key)


class _Group:
    """The enforced or the shadowed policies of a tenant."""

    def __init__(self, modules: list[tree.Module], policies: list[frames.ChildPolicy]) -> None:
        self._entries = [_Entry(policy) for policy in policies]
        self._index = GuardIndex(_guards(modules, policy) for policy in policies)

    def candidates(self, document: Any) -> Iterator[_Entry]:
        return (self._entries[number] for number in self._index.candidates(document))


def _guards(modules: list[tree.Module], policy: frames.ChildPolicy) -> Guards:
    _, *package, rule = policy.entry.split(".")
    own = [module for module in modules if module.package == tuple(package)]
    if not any(tree.name_of(node) == rule for module in own for node in module.rules):
        raise LoadRefused("a policy has no entry")
    return guards_of(own[0]) if len(own) == 1 else None


class Child:
    """The request loop. Revisions are loaded beside each other; the oldest is dropped."""

    def __init__(self, connection: socket.socket, progress: mmap.mmap) -> None:
        self._connection = connection
        self._progress = progress
        self._revisions: dict[str, dict[str, LoadedTenant]] = {}
        self._canary = regorus.Engine()
        self._canary.add_policy("canary.rego", _CANARY)

    def serve(self) -> None:
        while True:
            body = self._receive()
            if body is None:
                return
            request = frames.decode_request(body)
            match request:
                case frames.Evaluate():
                    self._evaluate(request)
                case frames.Load():
                    self._send(frames.Answer(id=request.id, refused=self._load(request)))
                case frames.Ping():
                    refused = "" if _alive(self._canary) else "canary"
                    self._send(frames.Answer(id=request.id, refused=refused))

    def _load(self, request: frames.Load) -> str:
        data = bytes(request.data) if request.data is not None else None
        try:
            loaded = {spec.tenant: LoadedTenant(spec, data) for spec in request.tenants}
        except LoadRefused as refused:
            return str(refused)
        self._revisions.pop(request.revision, None)
        self._revisions[request.revision] = loaded
        while len(self._revisions) > KEPT_REVISIONS:
            del self._revisions[next(iter(self._revisions))]
        return ""

    def _evaluate(self, request: frames.Evaluate) -> None:
        tenant = self._revisions.get(request.revision, {}).get(request.tenant)
        if tenant is None:
            self._send(frames.Answer(id=request.id, refused="revision_mismatch"))
            return
        answered: list[frames.Item] = []
        flushed = time.monotonic()
        for at, item in enumerate(request.items):
            frames.PROGRESS.pack_into(self._progress, 0, request.id, at)
            answered.append(tenant.evaluate(item, shadow=request.shadow))
            now = time.monotonic()
            if now - flushed > FLUSH_AFTER_S:
                self._send(frames.Answer(id=request.id, items=tuple(answered), done=False))
                answered, flushed = [], now
        self._send(frames.Answer(id=request.id, items=tuple(answered)))

    def _send(self, answer: frames.Answer) -> None:
        self._connection.sendall(frames.frame(answer))

    def _receive(self) -> bytes | None:
        head = self._exactly(frames.LENGTH.size)
        if head is None:
            return None
        return self._exactly(frames.LENGTH.unpack(head)[0])

    def _exactly(self, size: int) -> bytes | None:
        parts: list[bytes] = []
        while size:
            part = self._connection.recv(min(size, 1 << 20))
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _alive(canary: regorus.Engine) -> bool:
    """One real evaluation with a known answer."""
    canary.set_input_json('{"asked": 20}')
    return bool(canary.eval_rule_as_json("data.behavry.canary.answer") == "22")


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is the parent's to act on
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    progress = mmap.mmap(int(sys.argv[2]), frames.PROGRESS.size)
    with socket.socket(fileno=int(sys.argv[1])) as connection, contextlib.suppress(OSError):
        Child(connection, progress).serve()


if __name__ == "__main__":
    main()
