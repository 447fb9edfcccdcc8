"""The Rego that ships with the product: base policies and libraries, read from beside the
authorizer's code, so that builder, checks and engines see the same files.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path as FilePath

from services.common.rego import parse, references
from services.common.rego.authz import ActivePolicy
from services.common.rego.names import Path, base_policies

_DIRECTORY = FilePath(__file__).parents[2] / "authorizer" / "policy"


@cache
def modules() -> dict[str, str]:
    """Bundle path -> source: `behavry/base/grants.rego`, `behavry/lib/decision.rego`."""
    return {
        f"behavry/{file.relative_to(_DIRECTORY).as_posix()}": file.read_text()
        for file in sorted(_DIRECTORY.glob("*/*.rego"))
        if not file.name.endswith("_test.rego")
    }


@cache
def active_base() -> tuple[ActivePolicy, ...]:
    """The base policies as they enter each tenant's generated package."""
    return tuple(ActivePolicy(ref=ref) for ref in base_policies())


@cache
def base_references() -> frozenset[Path]:
    """The input paths that base policies read; everything where no parser is at hand."""
    try:
        program = references.Program(parse.parse(modules()))
    except parse.ParserUnavailable:
        return references.EVERYTHING
    entries = [(*ref.package.split("."), "verdicts") for ref in base_policies()]
    return references.reads_of(program, entries)
