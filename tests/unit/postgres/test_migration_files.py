"""Which files are migrations, and in which order they run."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.common.postgres.migrations import MigrationError, find
from services.common.postgres.roles import SCHEMAS

Make = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes a package whose `migrations` directory holds these files."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(*names: str) -> str:
        directory = tmp_path / "seeded_package" / "migrations"
        directory.mkdir(parents=True)
        (directory.parent / "__init__.py").touch()
        for name in names:
            (directory / name).write_text(f"-- {name}")
        return "seeded_package"

    yield make
    sys.modules.pop("seeded_package", None)


def test_they_run_in_the_order_of_their_numbers(package: Make) -> None:
    found = find(package("0002_b.sql", "0001_z.sql", "__init__.py"))

    assert [(1, "0001_z.sql"), (2, "0002_b.sql")] == [(one.version, one.name) for one in found]


@pytest.mark.parametrize(
    "names",
    [
        ("0002_late.sql",),
        ("0001_a.sql", "0003_c.sql"),
        ("0001_a.sql", "0001_b.sql"),
        ("1_a.sql",),
        ("0001-a.sql",),
    ],
)
def test_a_gap_a_double_or_another_name_is_refused(package: Make, names: tuple[str, ...]) -> None:
    with pytest.raises(MigrationError):
        find(package(*names))


def test_a_package_without_migrations_has_none() -> None:
    assert [] == find("services.proxy")
    assert [] == find("services.nobody")


@pytest.mark.parametrize("service", SCHEMAS)
def test_each_service_that_keeps_state_has_some(service: str) -> None:
    assert find(f"services.{service}")
