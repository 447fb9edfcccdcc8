"""The file that names the command lines of a proxy's children."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_toml(state: Path, name: str, **entry: Any) -> None:
    """With this one command line in it."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [f"[{name}]"] + [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
    (state / "stdio.toml").write_text("\n".join(lines).replace(": ", " = "))
    (state / "stdio.toml").chmod(0o600)
