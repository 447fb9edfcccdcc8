"""Finds what must hold before a policy can say anything: `input.request.tool == "rm"`.

A policy whose guards all fail gives no verdict, so neither engine has to evaluate it: a hundred
policies then cost what the matching ones cost. Taken from the rule's own body, never under `with`:
equality with a string or a boolean (numbers have several spellings), and `startswith` on a field
that the schema says is text, so that the function cannot fail.
"""

from __future__ import annotations

from typing import Final

from services.common.rego import inputs, tree
from services.common.rego.names import Path

STARTS: Final = "startswith"
#: What a field must be: this value, or a text that starts so (`("startswith", "drop_")`).
Wanted = str | bool | tuple[str, str]
Guard = tuple[tuple[Path, Wanted], ...]
#: One guard per verdict rule, each a conjunction. None: nothing is known, always evaluate.
Guards = tuple[Guard, ...] | None

MOST_RULES: Final = 16


def guards_of(module: tree.Module) -> Guards:
    found: list[Guard] = []
    for rule in module.rules:
        if tree.name_of(rule) != "verdicts":
            continue
        guard = _guard(module, rule)
        if not guard:
            return None
        if guard not in found:
            found.append(guard)
    return tuple(found) if 0 < len(found) <= MOST_RULES else None


def _guard(module: tree.Module, rule: tree.Node) -> Guard:
    kind, _ = tree.head_of(rule)
    if kind != "Set" or len(rule["Spec"]["bodies"]) != 1:
        return ()
    (body,) = rule["Spec"]["bodies"]
    conditions = [_condition(module, statement) for statement in body["query"]["stmts"]]
    return tuple(sorted({known for known in conditions if known is not None}, key=str))


def _condition(module: tree.Module, statement: tree.Node) -> tuple[Path, Wanted] | None:
    if statement.get("with_mods"):
        return None
    expression = statement["literal"].get("Expr", {}).get("expr")
    kind = tree.kind_of(expression)
    if kind == "Call":
        return _prefix(module, expression["Call"])
    if kind not in {"BoolExpr", "AssignExpr"} or expression[kind]["op"] != "Eq":
        return None
    left, right = expression[kind]["lhs"], expression[kind]["rhs"]
    for reference, constant in ((left, right), (right, left)):
        path, value = _static_input(module, reference), tree.literal_of(constant)
        if path and value is not None:
            return path, value
    return None


def _prefix(module: tree.Module, call: tree.Node) -> tuple[Path, Wanted] | None:
    name = tree.ref_of(call["fcn"])
    if name is None or (name.root, *name.steps) != (STARTS,) or len(call["params"]) != 2:
        return None
    path, text = _static_input(module, call["params"][0]), tree.text_of(call["params"][1])
    if not path or text is None or not inputs.is_text(path):
        return None
    return path, (STARTS, text)


def _static_input(module: tree.Module, node: tree.Node) -> Path | None:
    ref = tree.ref_of(node)
    if ref is None or None in ref.steps:
        return None
    if ref.root == "input":
        return ref.prefix
    imported = module.imports.get(ref.root, ())
    return (*imported[1:], *ref.prefix) if imported[:1] == ("input",) else None
