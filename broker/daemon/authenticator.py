"""Verifying passwords without holding up the node.

An Argon2 verification takes tens of milliseconds and as many megabytes on purpose. `Authenticator`
answers at once what was verified lately, and lets a few worker tasks do the rest in threads, one
after the other. How many may wait is bounded: beyond it a client is refused, so that a flood of
wrong passwords costs a bounded amount of memory and never the node's own thread.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import trio

from ganglion.broker.core.authentication import (
    MECHANISMS,
    Mechanism,
    Users,
    VerificationUnavailable,
)
from ganglion.broker.core.refusals import Log
from ganglion.broker.core.tokens import TOKEN_PREFIX, InvalidToken, user_of_token

__all__ = ["Authenticator"]

WAITING_MAX = 1024
"""Clients that may wait for a verification: a mass reconnect after a restart fits, and at some
30 per second the last of them is at its CONNECT deadline anyway."""

Done: TypeAlias = Callable[[bool | None], None]
_TOKEN_PREFIX = TOKEN_PREFIX.encode()
_Job: TypeAlias = tuple[str, bytes, Done]


class Authenticator:
    """Says whether clients are who they say they are."""

    def __init__(
        self,
        users: Users,
        *,
        users_exist: bool,
        log: Log,
        in_next_tick: Callable[[Callable[[], None]], None],
        token_key: bytes | None = None,
    ) -> None:
        """Judge by ``users``; without ``users_exist`` nobody's name can be verified.

        ``token_key`` signs tokens; without it there are none. ``in_next_tick`` has a call made in
        the node's next tick: late verdicts are given so.
        """
        self.refused_for_waiting = 0
        """Clients refused because too many waited already."""
        self._users = users
        self._users_exist = users_exist
        self._token_key = token_key
        self._log = log
        self._in_next_tick = in_next_tick
        self._jobs, self._taken = trio.open_memory_channel[_Job](WAITING_MAX)

    @property
    def users_exist(self) -> bool:
        """Whether clients have to say who they are, so that what they say is checked."""
        return self._users_exist

    def replace(self, users: Users, *, users_exist: bool, token_key: bytes | None = None) -> None:
        """Judge by these users, and tokens signed with this key, from now on."""
        self._users = users
        self._users_exist = users_exist
        self._token_key = token_key

    def mechanisms(self) -> Mapping[str, Callable[[], Mechanism]]:
        """What makes a new exchange of enhanced authentication, by the mechanism's name.

        There is none while no users exist: nobody could be verified.
        """
        if not self._users_exist:
            return {}
        return {name: partial(make, self._users) for name, make in MECHANISMS.items()}

    def user_of_token(self, token: str) -> str:
        """Whose token it is. Raises `InvalidToken`."""
        if self._token_key is None:
            raise InvalidToken("this node takes no tokens")
        user = user_of_token(self._token_key, token, time.time())
        if user not in self._users:
            raise InvalidToken("the token's user does not exist")
        return user

    def __call__(self, user: str | None, password: bytes | None, done: Done) -> None:
        """Call ``done`` with the verdict, now or later, in the thread of the node.

        A name without a password is wrong, and so is a password without a name. A token of the
        user will do for the password, so that it can be used over every protocol.
        """
        if user is None or password is None:
            done(False)
            return
        if self._token_key is not None and password.startswith(_TOKEN_PREFIX):
            done(self._is_token_of(user, password))
            return
        verdict = self._users.verify_cached(user, password)
        if verdict is not None:
            done(verdict)
            return
        try:
            self._jobs.send_nowait((user, password, done))
        except trio.WouldBlock:
            self.refused_for_waiting += 1
            done(None)

    def _is_token_of(self, user: str, password: bytes) -> bool:
        try:
            return self.user_of_token(password.decode("ascii")) == user
        except (InvalidToken, UnicodeDecodeError):
            return False

    async def run(self) -> None:
        """Verify what waits, until cancelled."""
        threads = max(1, min(2, (os.cpu_count() or 1) - 1))
        limiter = trio.CapacityLimiter(threads)
        async with trio.open_nursery() as nursery:
            for _ in range(threads):
                nursery.start_soon(self._work, limiter)

    async def _work(self, limiter: trio.CapacityLimiter) -> None:
        async for user, password, done in self._taken:
            users = self._users
            # Many connections of one user often come at once: the first answers for all.
            verdict = users.verify_cached(user, password)
            if verdict is None:
                try:
                    verdict = await trio.to_thread.run_sync(
                        users.verify, user, password, limiter=limiter
                    )
                except VerificationUnavailable as error:
                    self._log.warning("password not verified", user=user, error=str(error))
                    verdict = False
                if users is not self._users:  # reloaded meanwhile: the new users decide
                    self(user, password, done)
                    continue
            self._in_next_tick(partial(done, verdict))
