"""An upstream that is this very server is found out before it asks itself."""

import socket

import pytest

from softspec.errors import ConfigError
from softspec.server.upstream.loop import own_addresses, points_at, require_elsewhere
from softspec.server.upstream.settings import UpstreamSettings
from tests.support.scripted_upstream import ScriptedUpstream, answer

NAMES = {
    "localhost": ["127.0.0.1", "::1"],
    "here.example": ["192.168.1.5"],
    "here6.example": ["fd00::5"],
    "there.example": ["192.168.1.6"],
}
OWN = ["127.0.0.1", "192.168.1.5", "::1", "fd00::5", "fe80::5%eth0"]


def resolve(host: str) -> list[str]:
    return NAMES.get(host, [host] if host[0].isdigit() or ":" in host else [])


def is_loop(url: str, host: str | None, port: int) -> bool:
    return points_at(url, host, port, resolve, OWN)


@pytest.mark.parametrize("host", [None, "", "0.0.0.0", "::"])
@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "http://127.0.0.1:8000/v1",
        "http://127.0.0.9:8000/v1",
        "http://[::1]:8000/v1",
        "http://[::ffff:127.0.0.1]:8000/v1",
        "http://0.0.0.0:8000/v1",
        "http://[::]:8000/v1",
        "http://here.example:8000/other",
        "https://here.example:8000/v1",
        "http://here6.example:8000/v1",
        "http://[fe80::5]:8000/v1",
        "http://192.168.1.5:8000/v1",
    ],
)
def test_a_server_on_all_addresses_is_reached_by_each_of_its_own(url: str, host: str | None) -> None:
    assert is_loop(url, host, 8000)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8001/v1",
        "http://there.example:8000/v1",
        "http://192.168.1.6:8000/v1",
        "http://unknown.example:8000/v1",
        "http://localhost/v1",
        "https://localhost/v1",
    ],
)
def test_other_hosts_and_ports_are_elsewhere(url: str) -> None:
    assert not is_loop(url, None, 8000)


@pytest.mark.parametrize(("url", "port"), [("http://localhost/v1", 80), ("https://localhost/v1", 443)])
def test_a_url_without_a_port_has_the_one_of_its_scheme(url: str, port: int) -> None:
    assert is_loop(url, None, port)


@pytest.mark.parametrize(
    ("host", "url", "expected"),
    [
        ("127.0.0.1", "http://localhost:8000/v1", True),
        ("localhost", "http://127.0.0.1:8000/v1", True),
        ("127.0.0.1", "http://0.0.0.0:8000/v1", True),
        ("127.0.0.1", "http://192.168.1.5:8000/v1", False),
        ("192.168.1.5", "http://here.example:8000/v1", True),
        ("here.example", "http://192.168.1.5:8000/v1", True),
        ("192.168.1.5", "http://localhost:8000/v1", False),
        ("::1", "http://[::1]:8000/v1", True),
        ("::1", "http://127.0.0.1:8000/v1", False),
        ("fd00::5", "http://[FD00:0::5]:8000/v1", True),
    ],
)
def test_a_server_on_one_address_is_reached_by_that_one(host: str, url: str, expected: bool) -> None:
    assert is_loop(url, host, 8000) is expected


@pytest.mark.parametrize("host", [None, "127.0.0.1", "localhost"])
def test_a_real_server_on_this_machine_is_found(host: str | None) -> None:
    """With the system's own resolver and interfaces."""
    with ScriptedUpstream([answer({})]) as server:
        back = {"big": UpstreamSettings(url=f"http://localhost:{server.port}", model="m")}

        with pytest.raises(
            ConfigError, match=f"upstream 'big' points back .* port {server.port}: give the url"
        ):
            require_elsewhere(back, host, server.port)
        require_elsewhere(back, host, server.port + 1)


def test_addresses_of_this_machine_can_be_listened_on() -> None:
    found = own_addresses()

    assert "127.0.0.1" in found
    for address in found:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as listening:
            listening.bind(socket.getaddrinfo(address, 0, family, socket.SOCK_STREAM)[0][4])
