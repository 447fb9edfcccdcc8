"""The public keys that licences are checked with: files of this package, named by key id.

Nothing can be added from outside, or whoever runs an installation could issue its licences. A key
whose name begins with `dev` counts with BEHAVRY_ENV=development only.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from joserfc import errors as jose
from joserfc.jwk import OKPKey

DEVELOPMENT: Final = "dev"


@dataclass(frozen=True, slots=True)
class Keys:
    """By key id."""

    held: Mapping[str, OKPKey]

    def get(self, key_id: str) -> OKPKey | None:
        return self.held.get(key_id)


def load_keys(*, development: bool) -> Keys:
    return keys_of(packaged(), development=development)


def keys_of(pems: Mapping[str, bytes], *, development: bool) -> Keys:
    held = {}
    for key_id, pem in pems.items():
        key = ed25519_key(pem)
        if key is None or key.is_private:
            raise ValueError(f"the licence key {key_id} is no public Ed25519 key")
        if development or not key_id.startswith(DEVELOPMENT):
            held[key_id] = key
    return Keys(held)


def packaged() -> dict[str, bytes]:
    """What was built in: `keys/<key id>.pem`."""
    folder = importlib.resources.files("services.entitlements").joinpath("keys")
    return {
        file.name.removesuffix(".pem"): file.read_bytes()
        for file in folder.iterdir()
        if file.name.endswith(".pem")
    }


def ed25519_key(pem: bytes) -> OKPKey | None:
    """A key of that curve, public or private; None for anything else."""
    try:
        key = OKPKey.import_key(pem)
    except (jose.JoseError, ValueError, TypeError):
        return None
    return key if key.curve_name == "Ed25519" else None
