"""Basic authentication: who passes, what it costs, and what a flood of guesses cannot do."""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.web import wait_for

from gpuhost_exporter.web.auth import Authenticator, parse_basic
from gpuhost_exporter.web.message import Request

ALICE = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()


def request(user, password):
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return Request("GET", "/", "", {"authorization": f"Basic {encoded}"}, "127.0.0.1")


def status(authenticator, user, password):
    refusal = authenticator.refusal(request(user, password))
    return refusal.status if refusal else 200


@pytest.fixture
def checks(monkeypatch):
    """The hashes that bcrypt was asked to check, in order."""
    seen = []
    real = bcrypt.checkpw

    def counting(password, hashed):
        seen.append(hashed)
        return real(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counting)
    return seen


@pytest.mark.parametrize(
    ("user", "password", "expected"),
    [
        ("alice", "right", 200),
        ("alice", "wrong", 401),
        ("alice", "", 401),
        ("alice", "right\0", 401),
        ("alice", "right" + "x" * 100, 401),
        ("bob", "right", 401),
        ("", "right", 401),
        ("ålice", "right", 401),
    ],
)
def test_only_the_right_password_of_a_known_user_passes(user, password, expected):
    assert status(Authenticator({"alice": ALICE}), user, password) == expected


def test_a_refusal_asks_for_credentials():
    refusal = Authenticator({"alice": ALICE}).refusal(Request("GET", "/", "", {}, "127.0.0.1"))
    assert refusal.status == 401
    assert dict(refusal.headers)["WWW-Authenticate"].startswith('Basic realm="')


def test_a_password_longer_than_bcrypt_reads_is_wrong_though_its_beginning_fits():
    hashed = bcrypt.hashpw(b"p" * 72, bcrypt.gensalt(4)).decode()
    authenticator = Authenticator({"alice": hashed})
    assert status(authenticator, "alice", "p" * 73) == 401
    assert status(authenticator, "alice", "p" * 72) == 200


def test_a_scrape_costs_bcrypt_once(checks):
    authenticator = Authenticator({"alice": ALICE})
    assert [status(authenticator, "alice", "right") for _ in range(5)] == [200] * 5
    assert checks == [ALICE.encode()]


def test_a_wrong_password_is_never_remembered(checks):
    authenticator = Authenticator({"alice": ALICE})
    assert [status(authenticator, "alice", word) for word in ("wrong", "right", "wrong", "right")] == [
        401,
        200,
        401,
        200,
    ]
    assert len(checks) == 3


def test_an_unknown_user_costs_as_much_as_a_wrong_password(checks):
    authenticator = Authenticator({"alice": ALICE})
    status(authenticator, "nobody", "wrong")
    (checked,) = checks
    assert checked[:7] == ALICE.encode()[:7]  # algorithm family and cost


def test_a_flood_of_guesses_runs_one_at_a_time_and_does_not_delay_who_is_known(monkeypatch):
    authenticator = Authenticator({"alice": ALICE})
    assert status(authenticator, "alice", "right") == 200
    free = threading.Event()
    running, most = [], []

    def slow(password, hashed):
        running.append(1)
        most.append(len(running))
        free.wait(5)
        running.pop()
        return False

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    with ThreadPoolExecutor(30) as pool:
        guesses = [pool.submit(status, authenticator, "alice", f"guess {n}") for n in range(30)]
        assert wait_for(lambda: sum(guess.done() for guess in guesses) == 25)
        assert status(authenticator, "alice", "right") == 200
        free.set()
    assert sorted(guess.result() for guess in guesses) == [401] * 5 + [429] * 25
    assert max(most) == 1


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Basic YTpi", (b"a", b"b")),
        ("basic  YTpi ", (b"a", b"b")),
        ("Basic YTpiOmM=", (b"a", b"b:c")),
        ("Basic Og==", (b"", b"")),
        ("Basic YWI=", None),
        ("Basic YTpi, Basic YTpi", None),
        ("Basic ????", None),
        ("Basic", None),
        ("Bearer YTpi", None),
        ("", None),
    ],
)
def test_the_header_is_user_and_password_or_nothing(header, expected):
    assert parse_basic(header) == expected


@given(st.text())
def test_any_header_is_credentials_or_nothing(header):
    credentials = parse_basic("Basic " + header)
    assert credentials is None or len(credentials) == 2
