"""The users file, password verification and SCRAM-SHA-256."""

import base64
import hashlib
import hmac
import subprocess
import sys

import argon2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ganglion.broker.core import authentication
from ganglion.broker.core.authentication import (
    MECHANISMS,
    Challenge,
    Failure,
    InvalidPassword,
    InvalidUserName,
    InvalidUsersFile,
    ScramSha256,
    Success,
    UnknownUser,
    Users,
    VerificationUnavailable,
    check_user_name,
)
from ganglion.broker.core.scram import saslprep
from ganglion.clients.scram import ScramSha256Client

# The cheapest parameters there are: these tests are about what is decided, not about its cost.
CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
HASH = CHEAP.hash(b"pencil")


def scram_part(password: str, *, iterations: int = 4096, salt: bytes = b"0123456789abcdef") -> str:
    """The SCRAM field of a line, computed here by RFC 5802, 3, apart from the module."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored = base64.b64encode(hashlib.sha256(client_key).digest()).decode()
    server = base64.b64encode(hmac.digest(salted, b"Server Key", "sha256")).decode()
    return f"SCRAM-SHA-256${iterations}:{base64.b64encode(salt).decode()}${stored}:{server}"


PENCIL = scram_part("pencil")


def users_of(*names: str, scram: bool = True) -> Users:
    """Users who all have the password 'pencil'."""
    lines = [f"{name}:{HASH}{':' + PENCIL if scram else ''}" for name in names]
    return Users.parse("\n".join(lines), "users")


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `Users.add` hash with the cheapest parameters."""
    monkeypatch.setattr(authentication, "_hasher", lambda: CHEAP)


class TestSaslprep:
    """SASLprep (RFC 4013)."""

    @pytest.mark.parametrize(
        ("text", "prepared"),
        [
            ("I\u00adX", "IX"),
            ("user", "user"),
            ("USER", "USER"),
            ("\u00aa", "a"),
            ("\u2168", "IX"),
            ("a\u00a0b", "a b"),
            ("\u0627\u0628", "\u0627\u0628"),
            ("\U0001f98a", "\U0001f98a"),
            ("", ""),
        ],
    )
    def test_prepared(self, text: str, prepared: str) -> None:
        """The examples of RFC 4013, 3, spaces, right-to-left text and unassigned characters."""
        assert saslprep(text) == prepared

    @pytest.mark.parametrize("text", ["\u0007", "\u06271", "\u0627a\u0628", "\ue000", "\ufffd"])
    def test_refused(self, text: str) -> None:
        """Prohibited characters and mixed directions raise ValueError."""
        with pytest.raises(ValueError, match=r"not allowed|right to left"):
            saslprep(text)

    @given(st.text(max_size=8))
    def test_any_text(self, text: str) -> None:
        """Any text is refused with ValueError or has a prepared form; nothing else happens."""
        try:
            prepared = saslprep(text)
        except ValueError:
            return
        assert "\0" not in prepared
        assert "\u00ad" not in prepared


class TestUserNames:
    """What a user may be called."""

    @pytest.mark.parametrize("name", ["ann", "a b", "j.doe@example.org", "%c", "J\u00fcrgen", "="])
    def test_possible(self, name: str) -> None:
        """A name may have spaces inside, signs and letters of any script."""
        check_user_name(name)

    @pytest.mark.parametrize(
        "name",
        [
            *("", "*", "+", "a#b", "a/b", "a:b", ":anonymous", "a\nb", "a\x7f", " a", "a "),
            *("\ud800", "\u2168", "a\u00adb", "a\ufffdb"),
        ],
    )
    def test_impossible(self, name: str) -> None:
        """A name that would widen a pattern, break the file or be ambiguous is refused."""
        with pytest.raises(InvalidUserName):
            check_user_name(name)


class TestUsersFile:
    """Reading and writing the users file."""

    def test_users_comments_and_order(self) -> None:
        """Users are read in order; comments and blank lines stay where they are."""
        text = f"# people\nann:{HASH}\n\n  # devices\nbob:{HASH}:{PENCIL}\n"
        users = Users.parse(text, "users")
        assert list(users) == ["ann", "bob"]
        assert len(users) == 2
        assert "ann" in users
        assert "eve" not in users
        assert users.render() == text

    @pytest.mark.parametrize("text", ["", "\n", "# nobody yet\n\n"])
    def test_no_users(self, text: str) -> None:
        """A file without users is none, and comes back as it was."""
        users = Users.parse(text, "users")
        assert len(users) == 0
        assert users.render() == text

    def test_line_ends(self) -> None:
        """Line ends of Windows and a last line without one are read the same."""
        users = Users.parse(f"ann:{HASH}\r\nbob:{HASH}", "users")
        assert list(users) == ["ann", "bob"]
        assert users.render() == f"ann:{HASH}\nbob:{HASH}\n"

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("ann", "is not 'name:argon2-hash'"),
            (f":{HASH}", "must not be empty"),
            (f"a/b:{HASH}", "must not contain '/'"),
            (f"ann :{HASH}", "white space"),
            (f"bob:{HASH}", "'bob' is given twice"),
            ("ann:", "no Argon2 hash"),
            ("ann:secret", "no Argon2 hash"),
            (f"ann:{HASH} ", "no Argon2 hash"),
            (f"ann:{HASH}:", "SCRAM part"),
            (f"ann:{HASH}:SCRAM-SHA-1$4096:eA==$eA==:eA==", "SCRAM part"),
            (f"ann:{HASH}:{scram_part('x', iterations=4095)}", "4095 iterations"),
            (f"ann:{HASH}:{scram_part('x', salt=b'')}", "salt is empty"),
            (f"ann:{HASH}:SCRAM-SHA-256$4096:eA==$eA==:eA==", "32 bytes"),
            (f"ann:{HASH}:SCRAM-SHA-256$4096:?$eA==:eA==", "salt is not base64"),
            (f"ann:{HASH}:{PENCIL}:more", "SCRAM part"),
        ],
    )
    def test_a_wrong_line_is_named(self, line: str, message: str) -> None:
        """An error names the file and the line and says what is wrong with it."""
        with pytest.raises(InvalidUsersFile, match=message) as caught:
            Users.parse(f"# comment\nbob:{HASH}\n{line}\n", "/etc/ganglion/users")
        assert str(caught.value).startswith("/etc/ganglion/users:3: ")

    def test_an_error_does_not_show_a_password(self) -> None:
        """A password that was written where its hash belongs is not repeated in the error."""
        with pytest.raises(InvalidUsersFile) as caught:
            Users.parse("ann:hunter2", "users")
        assert "hunter2" not in str(caught.value)

    @given(st.text(max_size=40) | st.text("a:$=,\n#SCRAM-SHA-256", max_size=40))
    @example(f"a:{HASH}:SCRAM-SHA-256$\u0664\u0660\u0669\u0666:eA==$eA==:eA==")
    def test_any_text(self, text: str) -> None:
        """Any text is read, and then comes back the same when read again, or is refused."""
        try:
            users = Users.parse(text, "users")
        except InvalidUsersFile:
            return
        again = Users.parse(users.render(), "users")
        assert again.render() == users.render()
        assert list(again) == list(users)

    @pytest.mark.usefixtures("cheap")
    def test_add_replace_and_remove(self) -> None:
        """A new user comes last, a new password stays in place, and a removed user's line goes."""
        users = Users.parse(f"ann:{HASH}\n# devices\nbob:{HASH}\n", "users")
        line = users.add("eve", "one")
        again = users.add("ann", "two", scram=False)
        assert users.render() == f"{again}\n# devices\nbob:{HASH}\n{line}\n"
        assert ":SCRAM-SHA-256$" in line
        assert ":SCRAM-SHA-256$" not in again
        assert users.verify("eve", b"one")
        assert users.verify("ann", b"two")
        assert not users.verify("ann", b"pencil")
        users.remove("ann")
        assert users.render() == f"# devices\nbob:{HASH}\n{line}\n"
        assert not users.verify("ann", b"two")
        with pytest.raises(UnknownUser, match="ann"):
            users.remove("ann")
        stored = Users.parse(users.render(), "users")
        assert stored.verify("eve", b"one")
        assert exchange(stored, "eve", "one") == "eve"

    def test_what_cannot_be_added(self) -> None:
        """Impossible names and passwords are refused, the password is not repeated in the error."""
        users = Users.parse("", "users")
        with pytest.raises(InvalidUserName):
            users.add("a/b", "x")
        with pytest.raises(InvalidPassword, match="empty"):
            users.add("ann", "")
        with pytest.raises(InvalidPassword, match="SASLprep"):
            users.add("ann", "\u00ad")
        for password in ("hunter2\x07", "hunter2\ud800"):
            for scram in (True, False):
                if scram or password.endswith("\ud800"):
                    with pytest.raises(InvalidPassword) as caught:
                        users.add("ann", password, scram=scram)
                    assert "hunter2" not in str(caught.value)
        assert len(users) == 0

    def test_secrets_stay_out_of_reprs(self) -> None:
        """What is shown of a user in a log or a traceback has neither hash nor keys."""
        users = users_of("ann")
        shown = repr(users._users["ann"])
        assert "ann" in shown
        assert HASH not in shown
        assert repr(users._users["ann"].scram) == "_ScramVerifier(iterations=4096)"

    def test_needs_rehash(self) -> None:
        """A hash with other parameters than today's asks for renewal; a new one does not."""
        users = users_of("ann")
        assert users.needs_rehash("ann")
        users.add("bob", "x", scram=False)
        assert not users.needs_rehash("bob")
        with pytest.raises(UnknownUser):
            users.needs_rehash("eve")


class TestPasswords:
    """Verification of passwords."""

    def test_verify(self) -> None:
        """Right is right, wrong is wrong, and an unknown user has no right password."""
        users = users_of("ann")
        assert users.verify("ann", b"pencil")
        assert not users.verify("ann", b"pencils")
        assert not users.verify("ann", b"")
        assert not users.verify("eve", b"pencil")
        assert not users.verify("", b"")
        assert not users.verify("\ud800", b"\xff\0")

    def test_an_unknown_user_costs_an_argon2_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same work is done for a known and an unknown name, with the same parameters."""
        runs: list[str] = []
        real = authentication._verify_argon2

        def counting(encoded: str, password: bytes) -> bool:
            runs.append(encoded.rsplit("$", 2)[0])
            return real(encoded, password)

        monkeypatch.setattr(authentication, "_verify_argon2", counting)
        users = users_of("ann")
        assert not users.verify("ann", b"x")
        assert not users.verify("eve", b"x")
        assert runs == ["$argon2id$v=19$m=8,t=1,p=1"] * 2

    def test_no_users_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With nobody in the file a password is still compared, at today's cost, and wrong."""
        compared: list[str] = []
        real = authentication._verify_argon2

        def counting(encoded: str, password: bytes) -> bool:
            compared.append(encoded)
            return real(encoded, password)

        monkeypatch.setattr(authentication, "_verify_argon2", counting)
        assert not Users.parse("", "users").verify("eve", b"x")
        (encoded,) = compared
        assert not authentication._hasher().check_needs_rehash(encoded)

    def test_answers_are_remembered(self) -> None:
        """`verify_cached` knows what `verify` answered, for exactly this name and password."""
        users = users_of("ann", "bob")
        assert users.verify_cached("ann", b"pencil") is None
        users.verify("ann", b"pencil")
        users.verify("ann", b"wrong")
        users.verify("eve", b"pencil")
        assert users.verify_cached("ann", b"pencil") is True
        assert users.verify_cached("ann", b"wrong") is False
        assert users.verify_cached("eve", b"pencil") is False
        assert users.verify_cached("bob", b"pencil") is None
        assert users.verify_cached("ann", b"pencil2") is None
        assert users.verify_cached("annp", b"encil") is None

    @pytest.mark.usefixtures("cheap")
    def test_a_change_forgets(self) -> None:
        """A new password or a removed user ends what was remembered of it."""
        users = users_of("ann", "bob")
        users.verify("ann", b"pencil")
        users.verify("bob", b"pencil")
        users.add("ann", "new", scram=False)
        users.remove("bob")
        assert users.verify_cached("ann", b"pencil") is None
        assert users.verify_cached("bob", b"pencil") is None

    def test_the_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Past the bound the oldest answer goes; wrong guesses push out no right answer."""
        monkeypatch.setattr(authentication, "_ANSWERS_MAX", 3)
        users = users_of("ann")
        users.verify("ann", b"pencil")
        for guess in (b"1", b"2", b"3", b"4"):
            users.verify("ann", guess)
        assert users.verify_cached("ann", b"1") is None
        assert users.verify_cached("ann", b"2") is False
        assert users.verify_cached("ann", b"pencil") is True
        assert len(users._refused) == 3

    def test_no_password_is_kept(self) -> None:
        """What is remembered is keyed digests, different in each process, not passwords."""
        one, other = users_of("ann"), users_of("ann")
        one.verify("ann", b"pencil")
        other.verify("ann", b"pencil")
        assert not set(one._verified) & set(other._verified)
        assert {len(each) for each in one._verified} == {32}

    def test_a_hash_that_argon2_cannot_use_is_an_error(self) -> None:
        """When Argon2 cannot judge, the answer is an error, not 'wrong'."""
        users = Users.parse("ann:$argon2id$v=19$m=1,t=1,p=1$c2FsdHNhbHQ$aGFzaA", "users")
        with pytest.raises(VerificationUnavailable):
            users.verify("ann", b"x")
        assert users.verify_cached("ann", b"x") is None

    @pytest.mark.slow
    def test_argon2_is_imported_only_when_needed(self) -> None:
        """A start without users does not pay for the import of Argon2."""
        program = (
            "import sys\n"
            "from ganglion.broker.core.authentication import Users\n"
            "Users.parse('', 'users')\n"
            "print('argon2' in sys.modules)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout == "False\n"


def exchange(users: Users, name: str, password: str) -> str:
    """Run both sides to the end: the user, or 'refused: reason'."""
    server = ScramSha256(users)
    client = ScramSha256Client(name, password)
    challenge = server.step(client.first())
    assert isinstance(challenge, Challenge)
    step = server.step(client.final(challenge.data))
    if isinstance(step, Failure):
        return f"refused: {step.reason}"
    assert isinstance(step, Success)
    client.verify(step.data)
    return step.user


def rfc_users() -> Users:
    """The user of the example in RFC 7677, 3."""
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    return Users.parse(f"user:{HASH}:{scram_part('pencil', salt=salt)}", "users")


def rfc_nonce() -> str:
    """The server's part of the nonce in the example of RFC 7677, 3."""
    return "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"


FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
CHALLENGE = (
    b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
)
FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
    b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
SIGNATURE = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


class TestScramServer:
    """The server's side."""

    def test_the_example_of_the_rfc(self) -> None:
        """The exchange of RFC 7677, 3, byte by byte."""
        server = ScramSha256(rfc_users(), rfc_nonce)
        assert server.step(FIRST) == Challenge(CHALLENGE)
        assert server.step(FINAL) == Success("user", SIGNATURE)

    def test_the_mechanism_is_registered(self) -> None:
        """MECHANISMS makes it by its registered name."""
        mechanism = MECHANISMS["SCRAM-SHA-256"](rfc_users())
        assert mechanism.name == "SCRAM-SHA-256"
        assert isinstance(mechanism.step(FIRST), Challenge)

    @given(name=st.text(max_size=8), password=st.text(min_size=1, max_size=8))
    @example(name="a,b=c", password="=2C,")
    @example(name="\u00fcser", password="\u2168")
    def test_any_user_and_password(self, name: str, password: str) -> None:
        """Whatever a user may be called, the right password succeeds and another one fails."""
        try:
            check_user_name(name)
            prepared = saslprep(password)
        except (InvalidUserName, ValueError):
            return
        if prepared:  # twice the password is another one of the same direction of writing
            users = Users.parse(f"{name}:{HASH}:{scram_part(prepared)}", "users")
            assert exchange(users, name, password) == name
            assert exchange(users, name, password * 2).startswith("refused: ")

    def test_each_exchange_has_its_own_nonce(self) -> None:
        """The same first message is challenged with another nonce each time."""
        users = rfc_users()
        one, other = ScramSha256(users).step(FIRST), ScramSha256(users).step(FIRST)
        assert isinstance(one, Challenge)
        assert isinstance(other, Challenge)
        assert one.data != other.data
        assert one.data.startswith(b"r=rOprNGfwEbeRWgbNEkqO")

    def test_a_replayed_proof_is_refused(self) -> None:
        """The proof of one exchange is worth nothing in the next."""
        server = ScramSha256(rfc_users())
        challenge = server.step(FIRST)
        assert isinstance(challenge, Challenge)
        assert isinstance(server.step(FINAL), Failure)

    def test_an_unknown_user_looks_like_a_known_one(self) -> None:
        """It gets a challenge of the same shape, the same salt each time, and the same refusal."""
        users = users_of("ann")
        steps = {
            name: [challenge_fields(users, name) for _ in range(2)] for name in ("ann", "eve", "bo")
        }
        for fields in steps.values():
            assert fields[0]["i"] == "4096"
            assert len(base64.b64decode(fields[0]["s"])) == 16
            assert fields[0]["s"] == fields[1]["s"]
        assert steps["eve"][0]["s"] != steps["bo"][0]["s"]
        # A reload, or a restart, of the same file keeps a decoy as it keeps a salt.
        assert challenge_fields(users_of("ann"), "eve")["s"] == steps["eve"][0]["s"]
        refusals = [refusal(users, name, "wrong") for name in ("ann", "eve")]
        assert refusals[0].data == refusals[1].data == b"e=invalid-proof"
        assert refusals[0].reason.startswith("the proof is wrong")
        assert refusals[1].reason == "there is no such user"
        assert [each.user for each in refusals] == ["ann", "eve"]

    def test_a_user_without_a_verifier(self) -> None:
        """Such a user is refused like an unknown one; only the log says why."""
        failed = refusal(users_of("ann", scram=False), "ann", "pencil")
        assert failed.data == b"e=invalid-proof"
        assert "no SCRAM verifier" in failed.reason

    def test_a_client_that_could_bind_channels(self) -> None:
        """'y' (the client could bind, but saw no offer) is accepted and must be repeated."""
        users = rfc_users()
        server = ScramSha256(users, rfc_nonce)
        assert isinstance(server.step(b"y" + FIRST[1:]), Challenge)
        failed = server.step(FINAL)
        assert isinstance(failed, Failure)
        assert failed.data == b"e=channel-bindings-dont-match"

    def test_acting_as_oneself_and_extensions(self) -> None:
        """An authorization identity that is the user's own and optional extensions pass."""
        users = rfc_users()
        server = ScramSha256(users, rfc_nonce)
        challenge = server.step(b"n,a=user,n=user,r=rOprNGfwEbeRWgbNEkqO,x=ignored")
        assert challenge == Challenge(CHALLENGE)
        header = base64.b64encode(b"n,a=user,")
        without_proof = b"c=" + header + FINAL[6:].rpartition(b",p=")[0] + b",z=ignored"
        told = b",".join([b"n=user,r=rOprNGfwEbeRWgbNEkqO,x=ignored", CHALLENGE, without_proof])
        salted = hashlib.pbkdf2_hmac(
            "sha256", b"pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096
        )
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client_key).digest(), told, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        step = server.step(without_proof + b",p=" + base64.b64encode(proof))
        assert isinstance(step, Success)
        assert step.user == "user"

    @pytest.mark.parametrize(
        ("message", "reason", "code"),
        [
            (b"", "too short", "other-error"),
            (b"n,,", "lacks the nonce", "other-error"),
            (b"n,,n=user", "lacks the nonce", "other-error"),
            (b"n,,r=abc,n=user", "n= is not where it belongs", "other-error"),
            (b"n,,n=user,s=abc", "r= is not where it belongs", "other-error"),
            (b"n,,n=user,r=", "nonce is empty", "other-error"),
            (b"n,,n=user,r=a b", "nonce", "other-error"),
            (b"n,,n=user,r=\xc3\xbc", "nonce", "other-error"),
            (b"n,,n=user,r=abc,", "extension", "other-error"),
            (b"n,,n=user,r=abc,1=x", "extension", "other-error"),
            (b"n,,m=x,n=user,r=abc", "demands an extension", "extensions-not-supported"),
            (b"p=tls-unique,,n=user,r=abc", "channel binding", "channel-binding-not-supported"),
            (b"x,,n=user,r=abc", "begin with n, y or p=", "other-error"),
            (b"n,user,n=user,r=abc", "a= is not where it belongs", "other-error"),
            (b"n,a=root,n=user,r=abc", "act as another user", "other-error"),
            (b"n,a==,n=user,r=abc", "stray '='", "invalid-username-encoding"),
            (b"n,,n=us=er,r=abc", "stray '='", "invalid-username-encoding"),
            (b"n,,n===2C3D,r=abc", "stray '='", "invalid-username-encoding"),
            (b"n,,n=,r=abc", "user name is empty", "invalid-username-encoding"),
            (b"n,,n=\x07,r=abc", "U+0007", "invalid-username-encoding"),
            (b"n,,n=\xff,r=abc", "not UTF-8", "invalid-encoding"),
            (b"n,,n=user,r=" + b"a" * 8192, "longer than 8192", "other-error"),
        ],
    )
    def test_first_messages_that_are_refused(self, message: bytes, reason: str, code: str) -> None:
        """A malformed first message fails with what is wrong and the RFC's error value."""
        server = ScramSha256(rfc_users())
        failed = server.step(message)
        assert isinstance(failed, Failure)
        assert reason in failed.reason
        assert failed.data == b"e=" + code.encode()

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ((b"c=biws", b"c=eSws"), "channel binding differs"),
            ((b"c=biws", b"c=?"), "channel binding is not base64"),
            ((b"c=biws", b"x=biws"), "c= is not where it belongs"),
            ((b"r=rOpr", b"r=xOpr"), "nonce differs"),
            ((b"$k0,", b"$k,"), "nonce differs"),
            ((b",p=d", b",p=e"), "proof is wrong"),
            ((b"VQ=", b"VQ"), "proof is not base64"),
            ((b"VQ=", b"VR="), "proof is not base64"),
            ((b"AndVQ=", b""), "proof"),
            ((b",p=", b",q="), "lacks the nonce or the proof"),
            ((b",p=", b",x,p="), "extension"),
            ((FINAL, b""), "lacks the nonce or the proof"),
            ((FINAL, b"c=biws,p=eA=="), "lacks the nonce or the proof"),
            ((b",p=dHzb", b",p=\xff"), "not UTF-8"),
            ((b",p=dHzb", ",p=\u00fc".encode()), "not base64"),
        ],
    )
    def test_final_messages_that_are_refused(
        self, change: tuple[bytes, bytes], reason: str
    ) -> None:
        """A final message that differs anywhere from the right one fails with what is wrong."""
        server = ScramSha256(rfc_users(), rfc_nonce)
        assert server.step(FIRST) == Challenge(CHALLENGE)
        assert change[0] in FINAL
        failed = server.step(FINAL.replace(*change))
        assert isinstance(failed, Failure)
        assert reason in failed.reason
        assert failed.user == "user"

    def test_after_the_end(self) -> None:
        """After a failure or a success nothing more is accepted, not even the right message."""
        server = ScramSha256(rfc_users(), rfc_nonce)
        server.step(FIRST)
        server.step(FINAL.replace(b",p=d", b",p=e"))
        assert isinstance(server.step(FINAL), Failure)
        server = ScramSha256(rfc_users(), rfc_nonce)
        server.step(FIRST)
        assert isinstance(server.step(FINAL), Success)
        assert isinstance(server.step(FINAL), Failure)

    @given(
        first=st.binary(max_size=60)
        | st.text("n,=yamrp\u00fc2C", max_size=30).map(str.encode)
        | st.just(FIRST),
        final=st.binary(max_size=60)
        | st.text("c=biws,rp\u00fc", max_size=30).map(str.encode)
        | st.integers(0, len(FINAL)).map(lambda length: FINAL[:length])
        | st.tuples(st.integers(0, len(FINAL) - 1), st.integers(0, 255)).map(
            lambda change: FINAL[: change[0]] + bytes([change[1]]) + FINAL[change[0] + 1 :]
        ),
    )
    def test_any_bytes(self, first: bytes, final: bytes) -> None:
        """Any bytes give an answer, and only the right message succeeds."""
        server = ScramSha256(rfc_users(), rfc_nonce)
        step = server.step(first)
        assert isinstance(step, Challenge | Failure)
        step = server.step(final)
        if isinstance(step, Success):
            assert (first, final) == (FIRST, FINAL)
        else:
            assert isinstance(step, Failure)
            assert step.reason


def challenge_fields(users: Users, name: str) -> dict[str, str]:
    """The attributes of the challenge for a user."""
    challenge = ScramSha256(users).step(f"n,,n={name},r=abc".encode())
    assert isinstance(challenge, Challenge)
    return dict(field.split("=", 1) for field in challenge.data.decode().split(","))


def refusal(users: Users, name: str, password: str) -> Failure:
    """The failure at the end of an exchange."""
    server = ScramSha256(users)
    client = ScramSha256Client(name, password)
    challenge = server.step(client.first())
    assert isinstance(challenge, Challenge)
    failed = server.step(client.final(challenge.data))
    assert isinstance(failed, Failure)
    return failed
