"""Tickets: good for their device's digests until their end, and for nothing else."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as some

from deployx.catalog import tickets
from deployx.errors import NotSignedIn

KEY = Ed25519PrivateKey.generate()
NOW = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
END = NOW + timedelta(hours=24)


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.mark.parametrize("count", [1, 2, 128, 129, 256, 257, 1000])
def test_a_ticket_is_good_for_each_of_its_digests_and_for_no_other(count: int) -> None:
    ticket = tickets.issue(KEY, 7, [digest(one) for one in range(count)], END)
    for one in range(count):
        assert tickets.check(KEY.public_key(), ticket, digest(one), NOW) == 7
    for other in range(count, count + 200):
        with pytest.raises(NotSignedIn, match="does not name"):
            tickets.check(KEY.public_key(), ticket, digest(other), NOW)


def test_a_ticket_ends_at_its_end() -> None:
    ticket = tickets.issue(KEY, 7, [digest(1)], END)
    assert tickets.check(KEY.public_key(), ticket, digest(1), END - timedelta(seconds=1)) == 7
    with pytest.raises(NotSignedIn, match="expired"):
        tickets.check(KEY.public_key(), ticket, digest(1), END)


def test_a_ticket_of_another_server_is_none() -> None:
    ticket = tickets.issue(Ed25519PrivateKey.generate(), 7, [digest(1)], END)
    with pytest.raises(NotSignedIn, match="no ticket of this server"):
        tickets.check(KEY.public_key(), ticket, digest(1), NOW)


def test_a_signature_over_something_else_makes_no_ticket() -> None:
    body = base64.urlsafe_b64decode(tickets.issue(KEY, 7, [digest(1)], END) + "==")[:-64]
    forged = base64.urlsafe_b64encode(body + KEY.sign(body)).decode().rstrip("=")
    with pytest.raises(NotSignedIn):
        tickets.check(KEY.public_key(), forged, digest(1), NOW)


@given(some.integers(0, 10**6), some.integers(1, 255))
def test_a_ticket_with_any_byte_changed_is_none(place: int, change: int) -> None:
    whole = bytearray(base64.urlsafe_b64decode(tickets.issue(KEY, 7, [digest(1), digest(2)], END) + "=="))
    whole[place % len(whole)] ^= change
    with pytest.raises(NotSignedIn):
        tickets.check(KEY.public_key(), base64.urlsafe_b64encode(whole).decode(), digest(1), NOW)


@given(some.text(max_size=200))
def test_any_other_text_is_no_ticket(text: str) -> None:
    with pytest.raises(NotSignedIn):
        tickets.check(KEY.public_key(), text, digest(1), NOW)


def test_more_contents_than_a_ticket_names_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 1000"):
        tickets.issue(KEY, 7, [digest(one) for one in range(1001)], END)


def test_a_ticket_fits_a_header() -> None:
    assert len(tickets.issue(KEY, 2**63 - 1, [digest(one) for one in range(500)], END)) < 6000
    assert len(tickets.issue(KEY, 2**63 - 1, [digest(one) for one in range(1000)], END)) < 11_000
