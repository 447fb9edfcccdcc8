"""Decides whether a tenant's policy may be saved (core.md 4). Works on the syntax tree: trying a
policy out is not enough, an unreached unknown function goes unnoticed.

Compiling and running its test cases is parse.py's and tester.py's work.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from services.common.errors import BehavryError
from services.common.rego import inputs, parse, references, shipped, tree
from services.common.rego.builtins import ALLOWED, HINTS
from services.common.rego.guards import Guards, guards_of
from services.common.rego.names import LIBRARY, Path, policy_package

MAX_SOURCE_BYTES: Final = 64 * 1024
ENTRY: Final = "verdicts"
_FILE: Final = "policy.rego"
#: Names that would look like the decision itself. `verdicts` is the one that counts.
_RESERVED: Final = frozenset({"decision", "allow", "batch", "shadow", "shadow_batch"})
_UNICODE_CLASS: Final = re.compile(r"\\[dDwWsSbB]")
_FORMAT: Final = re.compile(r"(?:[^%]|%v|%%)*")
_PATTERN_ARGUMENT: Final = {
    "regex.match": 0,
    "regex.find_n": 0,
    "regex.split": 0,
    "regex.replace": 1,
}


class PolicyRejected(BehavryError):
    """`rule` is a short machine name of what was broken; the message is for the author."""

    def __init__(self, rule: str, message: str, *, line: int = 1, column: int = 1) -> None:
        super().__init__("POLICY_REJECTED", message, rule=rule, line=str(line), column=str(column))
        self.rule = rule
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyReport:
    """What the builder needs to know of a checked policy."""

    package: str
    references: frozenset[Path]
    builtins: frozenset[str]
    guards: Guards = field(default=None)


@dataclass(frozen=True, slots=True)
class _Subject:
    module: tree.Module
    program: references.Program
    package: Path

    def reject(self, rule: str, message: str, at: int) -> PolicyRejected:
        line, column = self.module.place(at)
        return PolicyRejected(rule, message, line=line, column=column)


def check_policy(source: str, tenant: str, key: str, *, opa: str | None = None) -> PolicyReport:
    """1. size  2. syntax, compiled with the shipped modules  3. package, imports  4. rules
    5. built-ins  6. what it reads  7. where the engines differ  8. OPA's compiler, where a binary
    is given or on the PATH. Raises PolicyRejected.

    Blocks for about a fifth of a second: call it in a thread where a loop runs.
    """
    package = policy_package(tenant, key)
    if len(source.encode()) > MAX_SOURCE_BYTES:  # 1
        raise PolicyRejected("too_large", "a policy is at most 64 KiB")
    try:
        modules = _parsed(source)  # 2
        module = next(found for found in modules if found.path == _FILE)
        subject = _Subject(module, references.Program(modules), tuple(package.split(".")))
        for check in _CHECKS:  # 3-7
            for refused in check(subject):
                raise refused
        _compiled_by_opa(source, opa or shutil.which("opa"))  # 8
        return _report(subject)
    except RecursionError:
        raise PolicyRejected("nesting", "the policy is nested too deeply") from None


def _parsed(source: str) -> list[tree.Module]:
    try:
        return parse.parse({**shipped.modules(), _FILE: source})
    except parse.ParserUnavailable:
        raise PolicyRejected("no_parser", "no policy parser is installed here") from None
    except parse.SyntaxRefused as refused:
        raise _syntax(refused) from None


def _compiled_by_opa(source: str, binary: str | None) -> None:
    if binary is None:
        return
    try:
        parse.compile_with_opa({**shipped.modules(), _FILE: source}, binary)
    except parse.SyntaxRefused as refused:
        raise _syntax(refused) from None


def _syntax(refused: parse.SyntaxRefused) -> PolicyRejected:
    return PolicyRejected("syntax", refused.message, line=refused.line, column=refused.column)


def _report(subject: _Subject) -> PolicyReport:
    entry = (*subject.package, ENTRY)
    reached = subject.program.reachable([entry])
    return PolicyReport(
        package=".".join(subject.package),
        references=references.reads_of(subject.program, [entry]),
        builtins=frozenset(name for rule in reached for name in rule.calls),
        guards=guards_of(subject.module),
    )


def _package_and_imports(subject: _Subject) -> Iterator[PolicyRejected]:
    module = subject.module
    if not module.rego_v1:
        yield subject.reject("rego_v1", "policies are Rego v1", 0)
    if module.package != subject.package:
        yield subject.reject("package", f"the package must be {'.'.join(subject.package)}", 0)
    for path in module.imports.values():
        if path == ("rego", "v1") or path[0] == "input":
            continue
        if path[:1] == ("data",) and path[1 : 1 + len(LIBRARY)] == LIBRARY:
            continue
        yield subject.reject("import", "imports are rego.v1, input and data.behavry.lib", 0)


def _rules(subject: _Subject) -> Iterator[PolicyRejected]:
    entries = 0
    for rule in subject.module.rules:
        kind, head = tree.head_of(rule)
        at = tree.start_of(head["refr"])
        name = tree.name_of(rule)
        if name == ENTRY:
            entries += 1
            if kind != "Set" or tree.kind_of(head["refr"]) != "Var" or head["key"] is None:
                yield subject.reject("verdicts", "`verdicts` is a partial set: `contains`", at)
        elif name in _RESERVED:
            yield subject.reject("decision", f"`{name}` is not a policy's: use `verdicts`", at)
        elif name in subject.module.imports or name in ALLOWED or name in {"input", "data"}:
            yield subject.reject("shadowed", f"`{name}` already means something else", at)
        yield from _head(subject, kind, head, at)
    if not entries:
        yield subject.reject("verdicts", "a policy defines the partial set `verdicts`", 0)


def _head(subject: _Subject, kind: str, head: tree.Node, at: int) -> Iterator[PolicyRejected]:
    """Known difference of the embedded engine: heads that are general references."""
    ref = tree.ref_of(head["refr"])
    depth = len(ref.steps) if ref else 1
    dotted = tree.kind_of(head["refr"]) == "RefDot"
    if ref is None or dotted or depth > (1 if kind == "Compr" else 0):
        yield subject.reject("head", "name rules plainly: `name`, `name[key] := value`", at)


def _recursion(subject: _Subject) -> Iterator[PolicyRejected]:
    for rule in subject.module.rules:
        path = (*subject.package, tree.name_of(rule))
        facts = subject.program.rules[path]
        below = {found.path for found in subject.program.reachable(facts.uses)}
        if path in below or _uses_itself(subject, rule, path):
            at = tree.start_of(tree.head_of(rule)[1]["refr"])
            yield subject.reject("recursion", f"`{path[-1]}` depends on itself", at)


def _uses_itself(subject: _Subject, rule: tree.Node, path: Path) -> bool:
    if "Spec" not in rule:
        return False
    _, head = tree.head_of(rule)
    parts = [rule["Spec"]["bodies"], head.get("assign"), head.get("key")]
    for found in tree.walk(parts):
        ref = found.name if isinstance(found, tree.Call) else found
        if isinstance(ref, tree.Ref):
            used = subject.program.data_path(subject.module, ref)
            if used is not None and used[: len(path)] == path:
                return True
    return False


def _calls(subject: _Subject) -> Iterator[PolicyRejected]:
    for found in tree.walk(list(subject.module.rules)):
        if not isinstance(found, tree.Call):
            continue
        if subject.program.data_path(subject.module, found.name) is not None:
            continue
        name = ".".join((found.name.root, *found.name.prefix))
        if name not in ALLOWED or None in found.name.steps:
            hint = HINTS.get(name, "it is not among the functions that policies may use")
            yield subject.reject("builtin", f"`{name}` is refused: {hint}", found.at)
        elif len(found.arguments) != ALLOWED[name] and name != "walk":
            wants = f"`{name}` takes {ALLOWED[name]} argument(s)"
            yield subject.reject("arity", wants, found.at)
        yield from _patterns(subject, name, found)
        if name == "sprintf" and found.arguments:
            text = tree.text_of(found.arguments[0])
            if text is None or not _FORMAT.fullmatch(text):
                hint = "`sprintf` takes a literal with %v only: other verbs differ by engine"
                yield subject.reject("format", hint, found.at)


def _patterns(subject: _Subject, name: str, call: tree.Call) -> Iterator[PolicyRejected]:
    """Known difference: digit and word classes: ASCII in OPA, Unicode in the embedded engine."""
    position = _PATTERN_ARGUMENT.get(name)
    if position is None or position >= len(call.arguments):
        return
    pattern = tree.text_of(call.arguments[position])
    if pattern is None:
        yield subject.reject("pattern", f"the pattern of `{name}` must be a literal", call.at)
    elif _UNICODE_CLASS.search(pattern):
        hint = "write the class out, as in [0-9]: \\d \\w \\s \\b differ between the engines"
        yield subject.reject("pattern", hint, call.at)


def _data(subject: _Subject) -> Iterator[PolicyRejected]:
    """A policy sees its own rules and the shipped libraries, never another tenant's."""
    for found in tree.walk(list(subject.module.rules)):
        ref = found.name if isinstance(found, tree.Call) else found
        if isinstance(ref, tree.With):
            target = ref.target
            if target is None or subject.program.input_path(subject.module, target) is None:
                yield subject.reject("with", "`with` may replace parts of input only", ref.at)
            continue
        path = subject.program.data_path(subject.module, ref)
        if path is None:
            continue
        own, shared = path[: len(subject.package)], path[: len(LIBRARY)]
        if own == subject.package and len(path) > len(own):
            continue
        if shared != LIBRARY or not subject.program.matching(path):
            yield subject.reject("data", "only data.behavry.lib may be used from here", ref.at)


def _reads(subject: _Subject) -> Iterator[PolicyRejected]:
    for found in tree.walk(list(subject.module.rules)):
        if not isinstance(found, tree.Ref):
            continue
        path = subject.program.input_path(subject.module, found)
        if path is None:
            continue
        problem = inputs.problem_with(path)
        if problem:
            yield subject.reject(
                "input", f"input{''.join(f'.{s}' for s in path)}: {problem}", found.at
            )


def _differences(subject: _Subject) -> Iterator[PolicyRejected]:
    """What the embedded engine is known to judge unlike OPA."""
    for _, node in tree.nodes(list(subject.module.rules), frozenset({"NotExpr"})):
        if tree.kind_of(node["expr"]) in {"Set", "Object", "SetCompr", "ObjectCompr", "ArrayCompr"}:
            at = node["span"]["start"]
            yield subject.reject("not", "`not` takes one expression: name a rule for more", at)
    for _, node in tree.nodes(list(subject.module.rules), frozenset({"UnaryExpr"})):
        if tree.kind_of(node["expr"]) != "Number":
            at = tree.start_of(node["expr"])
            yield subject.reject("minus", "a minus stands before a number only: `0 - x`", at)
    for statement in _statements(list(subject.module.rules)):
        keyed = [
            node
            for kind, node in tree.nodes(statement, frozenset({"SomeIn", "Membership"}))
            if node.get("key") is not None
        ]
        if keyed and statement.get("with_mods"):
            at = statement["span"]["start"]
            hint = "`key, value in` together with `with`: bind the collection to a name first"
            yield subject.reject("in_with", hint, at)


def _statements(node: object) -> Iterator[tree.Node]:
    if isinstance(node, list):
        for item in node:
            yield from _statements(item)
    elif isinstance(node, dict):
        if "literal" in node:
            yield node
        for key, value in node.items():
            if key != "span":
                yield from _statements(value)


_CHECKS: Final[tuple[Callable[[_Subject], Iterator[PolicyRejected]], ...]] = (
    _package_and_imports,
    _rules,
    _calls,
    _data,
    _recursion,
    _reads,
    _differences,
)
