"""What runs on one worker: a file's tests, and the journeys of one engine."""

from tests.turns import together

JOURNEYS = "tests/journeys/test_"


def test_a_file_stays_together() -> None:
    assert "tests/unit/test_a.py" == together("tests/unit/test_a.py::test_b[opa]")
    assert f"{JOURNEYS}a.py" == together(f"{JOURNEYS}a.py::test_of_no_engine")
    assert f"{JOURNEYS}a.py" == together(f"{JOURNEYS}a.py::test_b[an-opaque-thing]")


def test_the_journeys_of_one_engine_stay_together() -> None:
    names = ("a.py::test_b[opa]", "c.py::test_d[opa-modern]", "c.py::test_e[mcp1-sdk-opa]")

    assert {"journeys of opa"} == {together(JOURNEYS + name) for name in names}
    assert "journeys of embedded" == together(f"{JOURNEYS}a.py::test_b[embedded]")
