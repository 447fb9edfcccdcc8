"""What goes over the socket between a process and its Rego child: length-prefixed JSON.

Both ends in one file. Items and answers stay the bytes they are (`Raw`): the child parses an item
once, the parent an answer once.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
from msgspec import Raw, Struct

LENGTH: Final = struct.Struct(">I")
#: A page shared with the child: the request that it works on, and which item of it. Read when the
#: child was killed or died, to know whose item that was.
PROGRESS: Final = struct.Struct("<QQ")

#: One item's fault. None of them carries the engine's text: it may quote the input.
ERROR: Final = "engine_error"


class ChildPolicy(Struct, frozen=True):
    key: str
    entry: str
    shadow: bool = False


class ChildTenant(Struct, frozen=True):
    tenant: str
    modules: dict[str, str]
    policies: tuple[ChildPolicy, ...]


class Load(Struct, frozen=True, tag_field="op", tag="load"):
    id: int
    revision: str
    tenants: tuple[ChildTenant, ...]
    data: Raw | None = None


class Evaluate(Struct, frozen=True, tag_field="op", tag="evaluate"):
    """`shadow`: the policies in shadow instead of the enforced ones."""

    id: int
    revision: str
    tenant: str
    items: tuple[Raw, ...]
    shadow: bool = False


class Ping(Struct, frozen=True, tag_field="op", tag="ping"):
    id: int


Request = Load | Evaluate | Ping


class Item(Struct, frozen=True, omit_defaults=True):
    """`said`: [[policy, [verdict, ...]], ...] of the policies that said something."""

    said: Raw = Raw(b"[]")
    error: str = ""


class Answer(Struct, frozen=True, omit_defaults=True):
    """Answers come in the order of the requests. `done` is false while more of the same id
    follows; `refused` says why a load or a whole evaluation was not possible.
    """

    id: int
    items: tuple[Item, ...] = ()
    done: bool = True
    refused: str = ""


encode: Final = msgspec.json.Encoder().encode
decode_request: Final = msgspec.json.Decoder(Request).decode
decode_answer: Final = msgspec.json.Decoder(Answer).decode


def frame(message: Struct) -> bytes:
    body = encode(message)
    return LENGTH.pack(len(body)) + body
