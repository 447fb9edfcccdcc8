"""Picks the policies of a tenant that can say something about an input, by their guards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, Final

from services.common.rego.guards import Guard, Guards
from services.common.rego.names import Path

_MISSING: Final = object()


class GuardIndex:
    """Built once per revision. `numbered` policies come back in their order, each once."""

    def __init__(self, guards: Iterable[Guards]) -> None:
        self._always: list[int] = []
        self._by_value: dict[Path, dict[str | bool, list[tuple[int, Guard]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        numbered = list(enumerate(guards))
        shared = Counter(fact for _, known in numbered for guard in known or () for fact in guard)
        for number, known in numbered:
            if not known:
                self._always.append(number)
            for guard in known or ():
                rarest = min(guard, key=lambda fact: shared[fact])
                rest = tuple(fact for fact in guard if fact != rarest)
                self._by_value[rarest[0]][rarest[1]].append((number, rest))

    def candidates(self, document: Any) -> list[int]:
        found = set(self._always)
        for path, by_value in self._by_value.items():
            value = _at(document, path)
            if not isinstance(value, str | bool):
                continue
            for number, rest in by_value.get(value, ()):
                if all(_at(document, path) == wanted for path, wanted in rest):
                    found.add(number)
        return sorted(found)


def _at(document: Any, path: Path) -> Any:
    for step in path:
        if not isinstance(document, dict):
            return _MISSING
        document = document.get(step, _MISSING)
    return document
