"""Database addresses: they name a file with the password and never hold one."""

from pathlib import Path

import pytest

from services.common.postgres.pool import PasswordInUrl, check_url
from services.common.postgres.roles import SCHEMAS, role_dsn, scram_verifier

PASSFILE = Path("/state/passfiles/behavry_control.pgpass")


@pytest.mark.parametrize(
    ("admin", "expected"),
    [
        (
            "postgresql://behavry_admin@/behavry?host=/run&port=5432&passfile=/admin",
            f"postgresql://behavry_control@/behavry?host=/run&port=5432&passfile={PASSFILE}",
        ),
        (
            "postgresql://owner@db.eu:5433/ours?passfile=/admin&sslmode=verify-full",
            f"postgresql://behavry_control@db.eu:5433/ours?passfile={PASSFILE}&sslmode=verify-full",
        ),
        (
            "postgres://db.example/ours",
            f"postgresql://behavry_control@db.example/ours?passfile={PASSFILE}",
        ),
    ],
)
def test_a_role_gets_the_same_database_with_its_own_file(admin: str, expected: str) -> None:
    assert expected == role_dsn(admin, "behavry_control", PASSFILE)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@/db",
        "postgresql://u:@/db",
        "postgresql://u@/db?password=p",
        "postgresql://u@/db?host=/run&password=p",
    ],
)
def test_a_password_in_an_address_is_refused(url: str) -> None:
    with pytest.raises(PasswordInUrl):
        check_url(url)


def test_an_address_without_one_is_taken() -> None:
    url = "postgresql://u@/db?host=/run&passfile=/p"

    assert url == check_url(url)


def test_another_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="postgresql://"):
        check_url("mysql://u@/db")


def test_a_verifier_hides_the_password_and_differs_each_time() -> None:
    first, second = scram_verifier("correct-horse"), scram_verifier("correct-horse")

    assert first.startswith("SCRAM-SHA-256$4096:")
    assert "'" not in first
    assert "correct-horse" not in first
    assert first != second


def test_each_schema_has_an_owner_that_is_nobodys_login() -> None:
    logins = {role for schema in SCHEMAS.values() for role in schema.logins}
    owners = {schema.owner for schema in SCHEMAS.values()}

    assert set() == logins & owners
    assert len(owners) == len(SCHEMAS)
