"""Passwords: hashed with argon2id, checked off the event loop, at the same cost for users who do not exist."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

SHORTEST = 12

_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
"""The first of OWASP's recommended settings for argon2id: 19 MiB, two passes."""

_threads = ThreadPoolExecutor(4, "passwords")
"""Few and of their own: each check takes 19 MiB, and a flood of sign-ins must not take all memory or all threads."""


async def hashed(password: str) -> str:
    return await asyncio.get_running_loop().run_in_executor(_threads, _hasher.hash, password)


async def matches(stored: str | None, password: str) -> bool:
    """Whether the password is the stored one; with None it takes as long and is False."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads, _matches, stored or _NOBODY, password) and stored is not None


def _matches(stored: str, password: str) -> bool:
    try:
        return _hasher.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


_NOBODY = _hasher.hash("nobody has this password")
