"""Password hashes: argon2id made, bcrypt accepted once more."""

import time

import bcrypt

from command_api.credentials.passwords import PasswordCheck, Passwords

PASSWORDS = Passwords()


def test_a_password_is_hashed_with_argon2id_and_checked() -> None:
    stored = PASSWORDS.hash("correct horse")
    assert stored.startswith("$argon2id$")
    assert PASSWORDS.check("correct horse", stored) == PasswordCheck(right=True)
    assert PASSWORDS.check("wrong horse", stored) == PasswordCheck(right=False)


def test_a_bcrypt_hash_still_works_and_is_replaced() -> None:
    stored = bcrypt.hashpw(b"correct horse", bcrypt.gensalt(4)).decode()
    check = PASSWORDS.check("correct horse", stored)
    assert check.right
    assert check.new_hash is not None
    assert check.new_hash.startswith("$argon2id$")
    assert PASSWORDS.check("correct horse", check.new_hash).right
    assert PASSWORDS.check("wrong horse", stored) == PasswordCheck(right=False)


def test_what_bcrypt_cannot_take_is_just_wrong() -> None:
    stored = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert not PASSWORDS.check("x" * 500, stored).right
    assert not PASSWORDS.check("x", "no hash at all").right


def test_nobody_is_as_slow_as_somebody() -> None:
    stored = PASSWORDS.hash("correct horse")

    def seconds(hash_: str | None) -> float:
        started = time.process_time()
        assert not PASSWORDS.check("wrong horse", hash_).right
        return time.process_time() - started

    known, unknown = (min(seconds(one) for _ in range(3)) for one in (stored, None))
    assert unknown > known / 2, "an unknown name must not be told apart by the time it takes"
    assert not PASSWORDS.check("no password at all", None).right


def test_a_password_is_the_same_from_every_keyboard() -> None:
    stored = PASSWORDS.hash("caf\u00e9 au lait, please")
    assert PASSWORDS.check("cafe\u0301 au lait, please", stored).right
