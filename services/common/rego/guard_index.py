"""Picks the policies of a tenant that can say something about an input, by their guards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, Final

from services.common.rego.guards import Guards, Wanted
from services.common.rego.names import Path

_MISSING: Final = object()
_Fact = tuple[int, Wanted]


class GuardIndex:
    """Built once per revision. Candidates come back in the order of the guards, each once.

    Each guard hangs on its rarest equality, or else on being looked at every time.
    """

    def __init__(self, guards: Iterable[Guards]) -> None:
        self._paths: list[Path] = []
        self._always: list[int] = []
        self._unhung: list[tuple[int, tuple[_Fact, ...]]] = []
        by_value: dict[int, dict[str | bool, list[tuple[int, tuple[_Fact, ...]]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        numbered = list(enumerate(guards))
        shared = Counter(fact for _, known in numbered for guard in known or () for fact in guard)
        for number, known in numbered:
            if not known:
                self._always.append(number)
            for guard in known or ():
                facts = [(self._number(path), wanted) for path, wanted in guard]
                equalities = [fact for fact in guard if isinstance(fact[1], str | bool)]
                if not equalities:
                    self._unhung.append((number, tuple(facts)))
                    continue
                rarest = min(equalities, key=lambda fact: shared[fact])
                hung = (self._number(rarest[0]), rarest[1])
                rest = tuple(fact for fact in facts if fact != hung)
                if isinstance(hung[1], str | bool):
                    by_value[hung[0]][hung[1]].append((number, rest))
        self._by_value = [(at, dict(values)) for at, values in by_value.items()]

    def candidates(self, document: Any) -> list[int]:
        values = [_at(document, path) for path in self._paths]
        found = set(self._always)
        for at, by_value in self._by_value:
            value = values[at]
            if isinstance(value, str | bool):
                for number, rest in by_value.get(value, ()):
                    if not rest or _hold(rest, values):
                        found.add(number)
        for number, facts in self._unhung:
            if _hold(facts, values):
                found.add(number)
        return sorted(found)

    def _number(self, path: Path) -> int:
        if path not in self._paths:
            self._paths.append(path)
        return self._paths.index(path)


def _hold(facts: tuple[_Fact, ...], values: list[Any]) -> bool:
    for at, wanted in facts:
        value = values[at]
        if isinstance(wanted, tuple):
            # Where it is no text, the function fails: that must come out in the evaluation.
            if value is _MISSING or (isinstance(value, str) and not value.startswith(wanted[1])):
                return False
        elif value != wanted:
            return False
    return True


def _at(document: Any, path: Path) -> Any:
    for step in path:
        if not isinstance(document, dict):
            return _MISSING
        document = document.get(step, _MISSING)
    return document
