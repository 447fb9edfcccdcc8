"""Decides which input paths a decision can read: everything that is reachable from its entry.

A path ends where the reference stops being static: from there on the whole subtree counts as
read. Too much is only slower; too little would change decisions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.common.rego import tree
from services.common.rego.names import Path

#: Read whole: what is assumed where no parser is at hand.
EVERYTHING: Final[frozenset[Path]] = frozenset({()})


@dataclass(slots=True)
class RuleFacts:
    """What one rule refers to: input paths, data paths (rules among them), built-in functions."""

    package: Path
    name: str
    reads: set[Path] = field(default_factory=set)
    uses: set[Path] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)

    @property
    def path(self) -> Path:
        return (*self.package, self.name)


class Program:
    """All rules of some modules, by path."""

    def __init__(self, modules: Sequence[tree.Module]) -> None:
        self.modules = tuple(modules)
        self._names: dict[Path, set[str]] = defaultdict(set)
        for module in modules:
            self._names[module.package].update(tree.name_of(rule) for rule in module.rules)
        self.rules: dict[Path, RuleFacts] = {}
        for module in modules:
            for rule in module.rules:
                self._add(module, rule)

    def data_path(self, module: tree.Module, ref: tree.Ref) -> Path | None:
        """The path below `data` that this reference names, or None."""
        if ref.root == "data":
            return ref.prefix
        imported = module.imports.get(ref.root)
        if imported and imported[0] == "data":
            return (*imported[1:], *ref.prefix)
        if ref.root in self._names[module.package]:
            return (*module.package, ref.root, *ref.prefix)
        return None

    def input_path(self, module: tree.Module, ref: tree.Ref) -> Path | None:
        """The path below `input` that this reference reads, or None."""
        if ref.root == "input":
            return ref.prefix
        imported = module.imports.get(ref.root)
        if imported and imported[0] == "input":
            return (*imported[1:], *ref.prefix)
        return None

    def reachable(self, entries: Iterable[Path]) -> list[RuleFacts]:
        """The entries and all rules that they can come to, transitively."""
        waiting = list(entries)
        seen: dict[Path, RuleFacts] = {}
        while waiting:
            for rule in self.matching(waiting.pop()):
                if rule.path not in seen:
                    seen[rule.path] = rule
                    waiting.extend(rule.uses)
        return list(seen.values())

    def matching(self, path: Path) -> list[RuleFacts]:
        """The rules that a data reference can touch: the one it lies in, or all below it."""
        exact = [self.rules[path[:n]] for n in range(len(path) + 1) if path[:n] in self.rules]
        if exact:
            return exact
        return [rule for at, rule in self.rules.items() if at[: len(path)] == path]

    def _add(self, module: tree.Module, rule: tree.Node) -> None:
        name = tree.name_of(rule)
        path = (*module.package, name)
        facts = self.rules.setdefault(path, RuleFacts(module.package, name))
        for found in tree.walk(rule):
            match found:
                case tree.Ref():
                    self._note(module, facts, found)
                case tree.Call(name=called):
                    at = self.data_path(module, called)
                    if at is not None:
                        facts.uses.add(at)
                    else:
                        facts.calls.add(".".join((called.root, *called.prefix)))
                case tree.With():
                    pass  # replaced, not read; its value was walked by itself
        facts.uses.discard(path)

    def _note(self, module: tree.Module, facts: RuleFacts, ref: tree.Ref) -> None:
        read = self.input_path(module, ref)
        if read is not None:
            facts.reads.add(read)
            return
        used = self.data_path(module, ref)
        if used is not None:
            facts.uses.add(used)


def reads_of(program: Program, entries: Iterable[Path]) -> frozenset[Path]:
    """The input paths that these rules can read, without those inside another."""
    found: set[Path] = set()
    for rule in program.reachable(entries):
        found |= rule.reads
    return minimal(found)


def minimal(paths: Iterable[Path]) -> frozenset[Path]:
    wanted = set(paths)
    return frozenset(
        path for path in wanted if not any(path[:n] in wanted for n in range(len(path)))
    )


def reads_for(references: Iterable[frozenset[Path]]) -> list[list[str]]:
    """What a tenant's engine needs: the union over its active policies, base policies included."""
    union: set[Path] = set()
    for paths in references:
        union |= paths
    return [list(path) for path in sorted(minimal(union))]
