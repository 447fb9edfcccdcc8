"""Policies as files: `KEY.rego` and, beside it, `KEY.tests.json`.

Decides names and what a new one begins with; whether it is any good is control's to say.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from services.cli.output import CommandFailed, Exit

TESTS = ".tests.json"
_KEY = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TEMPLATE = """\
package behavry.tenant.t{tenant}.{key}

import rego.v1

# Every call is asked about; a policy that says nothing leaves the decision to the others.
verdicts contains {{
	"result": "{result}",
	"code": "{key}",
	"reason": {reason},
	"obligations": [],
}} if {{
	input.request.server == {server}
	input.request.tool == {tool}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """What was read from disk."""

    key: str
    source: str
    tests: list[dict[str, Any]]


def read(file: Path) -> PolicyFile:
    """A policy and its cases. Raises CommandFailed."""
    if file.suffix != ".rego" or not _KEY.fullmatch(file.stem):
        raise CommandFailed(
            "a policy's file is KEY.rego; keys are of a-z, 0-9 and _", status=Exit.USAGE
        )
    return PolicyFile(
        key=file.stem, source=_text(file), tests=_tests(file.with_name(file.stem + TESTS))
    )


def template(key: str, *, tenant: str, server: str, tool: str, result: str) -> dict[str, str]:
    """The two files of a policy about one tool, by name."""
    if not _KEY.fullmatch(key):
        raise CommandFailed("a policy's key is of a-z, 0-9 and _", status=Exit.USAGE)
    reason = f"{tool} waits for a person's consent" if result == "intercept" else f"{tool}: {key}"
    source = _TEMPLATE.format(
        tenant=UUID(tenant).hex,
        key=key,
        result=result,
        # A Rego string takes JSON's escapes.
        reason=json.dumps(reason, ensure_ascii=False),
        server=json.dumps(server, ensure_ascii=False),
        tool=json.dumps(tool, ensure_ascii=False),
    )
    cases = [
        {
            "name": tool,
            "input": {"request": {"server": server, "tool": tool}},
            "expect": result,
        },
        {
            "name": "another tool",
            "input": {"request": {"server": server, "tool": f"not_{tool}"}},
            "expect": "none",
        },
    ]
    return {f"{key}.rego": source, f"{key}{TESTS}": json.dumps(cases, indent=2) + "\n"}


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise CommandFailed(f"cannot read {file}", status=Exit.USAGE) from None


def _tests(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    try:
        cases = json.loads(_text(file))
    except ValueError as bad:
        raise CommandFailed(f"{file} is not JSON: {bad}", status=Exit.USAGE) from None
    if not isinstance(cases, list):
        raise CommandFailed(f"{file} must hold a list of cases", status=Exit.USAGE)
    return cases
