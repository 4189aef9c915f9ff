"""Verifying passwords beside the node: at once where possible, bounded where not."""

import threading
import time
from collections.abc import Callable

import pytest
import trio

from ganglion.broker.core.authentication import Users, VerificationUnavailable
from ganglion.broker.core.tokens import InvalidToken, make_token
from ganglion.broker.daemon.authenticator import WAITING_MAX, Authenticator


class SlowUsers(Users):
    """Users whose verification waits until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.verifying = threading.Event()
        self.asked: list[tuple[str, bytes]] = []
        self.right: dict[tuple[str, bytes], bool] = {}
        self.broken = False

    def verify_cached(self, name: str, password: bytes) -> bool | None:
        """What was verified before."""
        return self.right.get((name, password))

    def verify(self, name: str, password: bytes) -> bool:
        """Wait for the test; every password that is the name is right."""
        self.asked.append((name, password))
        self.verifying.set()
        assert self.go.wait(10)
        if self.broken:
            raise VerificationUnavailable("no memory")
        self.right[name, password] = name.encode() == password
        return self.right[name, password]


class Log:
    """Remembers the warnings."""

    def __init__(self) -> None:
        self.warnings: list[dict[str, object]] = []

    def debug(self, event: str, /, **details: object) -> None:
        """Nothing of interest here."""

    def info(self, event: str, /, **details: object) -> None:
        """Nothing of interest here."""

    def warning(self, event: str, /, **details: object) -> None:
        """Remember it."""
        self.warnings.append({"event": event, **details})


class Verdicts:
    """Collects the verdicts by name, and lets a test wait for them."""

    def __init__(self) -> None:
        self.given: dict[str, list[bool | None]] = {}
        self._changed = trio.Event()

    def of(self, name: str) -> Callable[[bool | None], None]:
        """What takes a verdict about this name."""

        def take(verdict: bool | None) -> None:
            self.given.setdefault(name, []).append(verdict)
            self._changed.set()
            self._changed = trio.Event()

        return take

    async def wait(self, count: int) -> None:
        """Until so many verdicts were given."""
        with trio.fail_after(10):
            while sum(map(len, self.given.values())) < count:
                await self._changed.wait()


def at_once(call: Callable[[], None]) -> None:
    """Stands for the next tick of a reactor."""
    call()


def authenticator(users: Users, log: Log | None = None) -> Authenticator:
    """One with users, whose late verdicts come at once."""
    return Authenticator(users, users_exist=True, log=log or Log(), in_next_tick=at_once)


async def test_a_verdict_comes_from_a_thread(nursery: trio.Nursery) -> None:
    """What was not verified lately is verified beside the node, and then remembered."""
    users, verdicts = SlowUsers(), Verdicts()
    judge = authenticator(users)
    nursery.start_soon(judge.run)
    judge("ada", b"ada", verdicts.of("ada"))
    judge("bob", b"wrong", verdicts.of("bob"))
    assert verdicts.given == {}
    users.go.set()
    await verdicts.wait(2)
    assert verdicts.given == {"ada": [True], "bob": [False]}
    judge("ada", b"ada", verdicts.of("again"))
    assert verdicts.given["again"] == [True]
    assert users.asked == [("ada", b"ada"), ("bob", b"wrong")]


async def test_many_connections_of_one_user_cost_one_verification(nursery: trio.Nursery) -> None:
    """When all devices of a user come back at once, the first one's verdict serves for all."""
    users, verdicts = SlowUsers(), Verdicts()
    judge = authenticator(users)
    for number in range(50):
        judge("ada", b"ada", verdicts.of(str(number)))
    users.go.set()
    nursery.start_soon(judge.run)
    await verdicts.wait(50)
    assert set(map(tuple, verdicts.given.values())) == {(True,)}
    assert len(users.asked) <= 2  # one for each worker at most


async def test_a_flood_is_refused_beyond_the_bound() -> None:
    """More than WAITING_MAX clients do not wait: they are refused at once, and counted."""
    users, verdicts = SlowUsers(), Verdicts()
    judge = authenticator(users)
    for number in range(WAITING_MAX + 3):
        judge("mallory", b"%d" % number, verdicts.of(str(number)))
    assert list(verdicts.given.values()) == [[None]] * 3
    assert judge.refused_for_waiting == 3


async def test_a_name_without_a_password_is_wrong() -> None:
    """Half of a name and a password is refused without any work."""
    users, verdicts = SlowUsers(), Verdicts()
    judge = authenticator(users)
    judge("ada", None, verdicts.of("no password"))
    judge(None, b"x", verdicts.of("no name"))
    assert verdicts.given == {"no password": [False], "no name": [False]}
    assert users.asked == []


async def test_a_reload_during_a_verification_counts(nursery: trio.Nursery) -> None:
    """A user that is deleted while its password is being verified does not get in."""
    users, verdicts = SlowUsers(), Verdicts()
    judge = authenticator(users)
    nursery.start_soon(judge.run)
    judge("ada", b"ada", verdicts.of("ada"))
    assert await trio.to_thread.run_sync(users.verifying.wait, 10)
    after = SlowUsers()
    after.right["ada", b"ada"] = False
    judge.replace(after, users_exist=True)
    users.go.set()
    await verdicts.wait(1)
    assert verdicts.given == {"ada": [False]}


async def test_what_cannot_be_verified_is_refused_and_told(nursery: trio.Nursery) -> None:
    """A lack of memory refuses the client, warns, and the next one is served."""
    users, verdicts, log = SlowUsers(), Verdicts(), Log()
    users.broken = True
    users.go.set()
    judge = authenticator(users, log)
    nursery.start_soon(judge.run)
    judge("ada", b"ada", verdicts.of("ada"))
    await verdicts.wait(1)
    assert verdicts.given == {"ada": [False]}
    assert log.warnings == [{"event": "password not verified", "user": "ada", "error": "no memory"}]
    users.broken = False
    judge("bob", b"bob", verdicts.of("bob"))
    await verdicts.wait(2)
    assert verdicts.given["bob"] == [True]


async def test_mechanisms_exist_with_users_only() -> None:
    """SCRAM is offered when somebody can be verified by it, with the users in force."""
    judge = Authenticator(Users(), users_exist=False, log=Log(), in_next_tick=at_once)
    assert judge.mechanisms() == {}
    judge.replace(Users(), users_exist=True)
    assert "SCRAM-SHA-256" in judge.mechanisms()
    assert judge.mechanisms()["SCRAM-SHA-256"]().name == "SCRAM-SHA-256"


async def test_a_token_in_place_of_the_password() -> None:
    """It lets its own user in, over every protocol, while that user exists and the key is this."""
    key = bytes(32)
    users, verdicts = Users(), Verdicts()
    users.add("ada", "a password")
    judge = Authenticator(users, users_exist=True, log=Log(), in_next_tick=at_once, token_key=key)
    good = make_token(key, "ada", time.time() + 60)
    over = make_token(key, "ada", time.time() - 1)
    judge("ada", good.encode(), verdicts.of("good"))
    judge("bob", good.encode(), verdicts.of("of another"))
    judge("ada", over.encode(), verdicts.of("over"))
    judge("ada", b"g1.\xff", verdicts.of("no text"))
    assert verdicts.given == {
        "good": [True],
        "of another": [False],
        "over": [False],
        "no text": [False],
    }
    assert judge.user_of_token(good) == "ada"
    with pytest.raises(InvalidToken, match="does not exist"):
        judge.user_of_token(make_token(key, "bob", time.time() + 60))
    judge.replace(users, users_exist=True)
    with pytest.raises(InvalidToken, match="takes no tokens"):
        judge.user_of_token(good)
