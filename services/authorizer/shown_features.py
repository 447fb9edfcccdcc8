"""What people are shown of a call's features, whose whole may be many times as large: an agent must
neither fill the store with the targets of its calls nor hide them by their number. Pure.
"""

from __future__ import annotations

from typing import Final

import msgspec

from services.authorizer.envelope import Features

MAX_FEATURES_BYTES: Final = 16 * 1024
_LISTS: Final = ("keys", "recipient_domains", "paths", "urls", "tables", "commands")


def shown(features: Features) -> bytes:
    """JSON of what fits: the first ones of each list, and `overflow` where that is not all."""
    encoded = msgspec.json.encode(features)
    for most in (16, 4, 1):
        if len(encoded) <= MAX_FEATURES_BYTES:
            break
        lists = {name: getattr(features, name)[:most] for name in _LISTS}
        cut = msgspec.structs.replace(features, **lists, overflow=True)
        encoded = msgspec.json.encode(cut)
    return encoded
