"""Failed authentication: ten are recorded each, the rest counted; twenty, and one has to wait."""

from services.proxy.failures import Failure, Failures
from tests.fakes.clock import ManualClock


def failure(address: str = "10.0.0.1", reason: str = "invalid_token") -> Failure:
    return Failure(address=address, reason=reason, tenant=None, agent="", server="notes")


def test_ten_are_recorded_and_the_rest_is_one_with_a_count() -> None:
    told: list[tuple[str, int]] = []
    clock = ManualClock()
    failures = Failures(clock, lambda one, count: told.append((one.address, count)))
    for _ in range(35):
        failures.add(failure())
    failures.add(failure(address="10.0.0.2"))

    assert [("10.0.0.1", 1)] * 10 + [("10.0.0.2", 1)] == told
    clock.advance(61)
    failures.sweep()
    assert ("10.0.0.1", 25) == told[-1]
    assert 36 == sum(count for _, count in told)


def test_reasons_are_counted_apart() -> None:
    told: list[int] = []
    failures = Failures(ManualClock(), lambda _, count: told.append(count))
    for _ in range(10):
        failures.add(failure())
        failures.add(failure(reason="token_expired"))

    assert [1] * 20 == told


def test_an_address_waits_a_minute_and_others_do_not() -> None:
    clock = ManualClock()
    failures = Failures(clock, lambda *_: None)
    for _ in range(19):
        failures.add(failure())
    assert not failures.blocked("10.0.0.1")
    failures.add(failure())

    assert failures.blocked("10.0.0.1")
    assert not failures.blocked("10.0.0.2")
    clock.advance(60)
    assert not failures.blocked("10.0.0.1")


def test_memory_is_bounded_and_nothing_goes_uncounted() -> None:
    told: list[int] = []
    failures = Failures(ManualClock(), lambda _, count: told.append(count))
    for number in range(25_000):
        failures.add(failure(address=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"))

    assert 25_000 == sum(told)
    assert len(failures._addresses) <= 10_000
