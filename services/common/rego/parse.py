"""Parses and compiles Rego in a child process, because a policy can crash the parser.

The child answers with the syntax tree or with one refusal; what a refusal means is the caller's.
Blocks for about a tenth of a second: call it in a thread where a loop runs.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from services.common.rego import tree

COMPILE_LIMIT_S: Final = 5.0
_PLACE: Final = re.compile(r"--> (?P<file>[^\n]*?):(?P<line>\d+):(?P<column>\d+)")
_ERROR: Final = re.compile(r"^error: (?P<text>[^\n]*)", re.MULTILINE)
_PROBE: Final = "package behavry.probe\n\nready := true\n"


class ParserUnavailable(Exception):
    """No parser is installed here."""


class SyntaxRefused(Exception):
    """What the parser or the compiler said. Its message quotes no policy text."""

    def __init__(self, message: str, *, line: int = 1, column: int = 1, file: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.file = file


def available() -> bool:
    return importlib.util.find_spec("regorus") is not None


def parse(sources: Mapping[str, str], *, limit_s: float = COMPILE_LIMIT_S) -> list[tree.Module]:
    """The modules of these files, in their order. Raises SyntaxRefused, ParserUnavailable."""
    if not available():
        raise ParserUnavailable
    try:
        done = subprocess.run(
            [sys.executable, "-m", "services.common.rego.parse"],
            input=json.dumps(dict(sources)).encode(),
            capture_output=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SyntaxRefused(f"compiling took longer than {limit_s:g} s") from None
    if done.returncode != 0:
        raise SyntaxRefused("the compiler could not cope with this policy")
    answer = json.loads(done.stdout)
    if "refused" in answer:
        raise _refusal(answer["refused"])
    return tree.modules(answer["modules"])


def compile_with_opa(
    sources: Mapping[str, str], binary: str, *, limit_s: float = COMPILE_LIMIT_S
) -> None:
    """OPA's own compiler, which knows types: what it refuses would keep a whole bundle from
    becoming active there. Raises SyntaxRefused.
    """
    with TemporaryDirectory(prefix="behavry-rego-") as directory:
        for path, source in sources.items():
            file = Path(directory, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        try:
            done = subprocess.run(
                [str(Path(binary).absolute()), "check", "--format=json", "."],
                cwd=directory,
                capture_output=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SyntaxRefused(f"compiling took longer than {limit_s:g} s") from None
        if done.returncode == 0:
            return
        try:
            first = json.loads(done.stderr)["errors"][0]
            place = first["location"]
        except (ValueError, LookupError, TypeError):
            raise SyntaxRefused("OPA cannot compile this policy") from None
        raise SyntaxRefused(
            first["message"], line=place["row"], column=place["col"], file=place["file"]
        )


def _refusal(text: str) -> SyntaxRefused:
    said = text.split("Stack backtrace", 1)[0]
    place = _PLACE.search(said)
    error = _ERROR.search(said)
    message = error["text"].strip() if error else "cannot be compiled"
    if place is None:
        return SyntaxRefused(message)
    return SyntaxRefused(
        message, line=int(place["line"]), column=int(place["column"]), file=place["file"]
    )


def _child() -> None:
    """Reads {path: source} on stdin; writes {"modules": [...]} or {"refused": text}."""
    import regorus  # noqa: PLC0415  # only this child may be crashed by it

    sources: dict[str, str] = json.load(sys.stdin)
    engine = regorus.Engine()
    answer: dict[str, Any]
    try:
        for path, source in sources.items():
            engine.add_policy(path, source)
        documents = json.loads(engine.get_ast_as_json())
        # Evaluating any rule makes the interpreter analyse all modules: unsafe variables show up.
        engine.add_policy("probe.rego", _PROBE)
        engine.eval_rule("data.behavry.probe.ready")
        answer = {"modules": documents}
    except RuntimeError as refused:
        answer = {"refused": str(refused)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _child()
