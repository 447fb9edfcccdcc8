"""Peer tokens in a directory, and a channel that calls with one of them."""

from __future__ import annotations

import secrets
from pathlib import Path

from services.common.rpc.peers import Identity

PEERS = ("proxy", "authorizer", "audit", "control", "entitlements", "operator")


def make_peers(directory: Path) -> Path:
    directory.mkdir(mode=0o700, exist_ok=True)
    for peer in PEERS:
        (directory / f"{peer}.token").write_text(secrets.token_urlsafe(32))
    return directory


def identity(directory: Path, peer: str) -> Identity:
    return Identity(peer, directory / f"{peer}.token")
