"""A place where the processes of one plane meet: letters to boxes that somebody reads right now,
and values that wait there for a while.

Decides nothing about what is in a letter or a value: both are text that its owner has sealed. No
method takes longer than its store's bound; instead it raises RendezvousLost, and has then perhaps
done what it was asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class RendezvousLost(Exception):
    """It does not answer. The message names no box and no key."""


class Rendezvous(Protocol):
    async def send(self, box: str, letter: str) -> bool:
        """Whether somebody reads that box now; several readers each get the letter. Nothing waits
        for who comes later. True of a reader that has just left, too: it does not answer.
        """

    def reading(self, boxes: Sequence[str]) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """The letters to these boxes, from entering on. Entering and reading raise RendezvousLost:
        what was sent since is lost, too.
        """

    async def put(self, key: str, part: str, value: str, *, ttl_s: int) -> None:
        """One part of what is kept under a key, instead of what it was; all parts last for
        `ttl_s` from now on.
        """

    async def get(self, key: str) -> dict[str, str]:
        """All parts; empty where there are none any more."""

    async def drop(self, key: str, part: str = "") -> None:
        """The part, or all of them."""
