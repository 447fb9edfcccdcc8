"""Where OPA may be."""

import pytest

from services.authorizer.engine.http1 import Address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("unix:/run/opa.sock", Address(path="/run/opa.sock")),
        ("unix:///run/opa.sock", Address(path="/run/opa.sock")),
        ("http://127.0.0.1:8181", Address(host="127.0.0.1", port=8181)),
        ("http://localhost:8181/", Address(host="localhost", port=8181)),
        ("http://[::1]:8181", Address(host="::1", port=8181)),
    ],
)
def test_a_socket_or_loopback_is_taken(url: str, expected: Address) -> None:
    assert expected == Address.parse(url)


@pytest.mark.parametrize(
    "url",
    ["", "http://opa.example:8181", "http://10.0.0.7", "https://127.0.0.1", "http://127.0.0.1/v1"],
)
def test_anything_else_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"address|loopback"):
        Address.parse(url)
