"""Tickets: which contents a device may fetch until when, signed by the server, so that no state is kept. Pure.

A ticket is base64url of: version (1 byte), device id and end in seconds since 1970 (8 bytes each), length of a digest
(1 byte), the beginnings of the digests in ascending order, and an Ed25519 signature over all that. Few digests stand
there whole; of many, only so much that a header still carries them: never less than 8 bytes, which nobody finds a
second content for.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from deployx.errors import NotSignedIn

MOST_DIGESTS = 1000
SCHEME = "Ticket"
_CONTEXT = b"deployx-ticket:1:"
_HEAD = struct.Struct(">BQQB")
_SIGNATURE_BYTES = 64
_LENGTHS = ((128, 32), (256, 16), (MOST_DIGESTS, 8))
"""Up to so many digests, so many bytes of each: at most 8 KiB, but for the longest lists."""


def issue(key: Ed25519PrivateKey, device_id: int, digests: Iterable[str], expires_at: datetime) -> str:
    """A ticket for a device and the contents of these digests (64 hexadecimal digits each); at most 1,000."""
    wanted = sorted({bytes.fromhex(one) for one in digests})
    if len(wanted) > MOST_DIGESTS:
        raise ValueError(f"A ticket names at most {MOST_DIGESTS} contents, not {len(wanted)}.")
    length = next(length for most, length in _LENGTHS if len(wanted) <= most)
    body = _HEAD.pack(1, device_id, int(expires_at.timestamp()), length) + b"".join(one[:length] for one in wanted)
    return base64.urlsafe_b64encode(body + key.sign(_CONTEXT + body)).decode().rstrip("=")


def check(public_key: Ed25519PublicKey, ticket: str, digest: str, now: datetime) -> int:
    """The device that may fetch this content now. Raises NotSignedIn that says why the ticket is not good."""
    try:
        whole = base64.b64decode(ticket + "=" * (-len(ticket) % 4), altchars=b"-_", validate=True)
        body, signature = whole[:-_SIGNATURE_BYTES], whole[-_SIGNATURE_BYTES:]
        public_key.verify(signature, _CONTEXT + body)
        version, device_id, expires, length = _HEAD.unpack_from(body)
        prefix = bytes.fromhex(digest)[:length]
    except (binascii.Error, ValueError, InvalidSignature, struct.error):
        raise NotSignedIn("This is no ticket of this server: send the one of the work order.", SCHEME) from None
    if version != 1 or datetime.fromtimestamp(expires, UTC) <= now:
        raise NotSignedIn("The ticket has expired: wait for the order to be sent again.", SCHEME)
    named = body[_HEAD.size :]
    if prefix not in {named[at : at + length] for at in range(0, len(named), length)}:
        raise NotSignedIn("The ticket does not name this content.", SCHEME)
    return int(device_id)
