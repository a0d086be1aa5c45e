"""Personal fields can be read with their person's key and with nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_api.credentials.personal import PersonKey, PersonKeys, Unreadable


@settings(deadline=None)
@given(st.text(max_size=200).filter(lambda text: text.isprintable()))
def test_a_field_comes_back(text: str) -> None:
    person = PersonKey.new("usr_1")
    assert person.decrypt(person.encrypt(text)) == text


def test_the_same_text_never_looks_the_same() -> None:
    person = PersonKey.new("usr_1")
    assert person.encrypt("ada") != person.encrypt("ada")
    assert "ada" not in person.encrypt("ada")


def test_another_persons_key_reads_nothing() -> None:
    person = PersonKey.new("usr_1")
    for other in (PersonKey.new("usr_1"), PersonKey("usr_2", person.key)):
        with pytest.raises(Unreadable):
            other.decrypt(person.encrypt("ada"))


@pytest.mark.parametrize("damaged", ["", "ada", "p1.", "p1.!!!", "p1.AAAA", "p2.AAAA"])
def test_what_is_no_ciphertext_is_named(damaged: str) -> None:
    with pytest.raises(Unreadable):
        PersonKey.new("usr_1").decrypt(damaged)


def test_a_wrapped_key_opens_only_for_its_person_and_with_the_wrapping_key() -> None:
    keys, person = PersonKeys(b"k" * 32), PersonKey.new("usr_1")
    wrapped = keys.wrap(person)
    assert keys.unwrap("usr_1", wrapped) == person
    assert person.key not in wrapped
    with pytest.raises(Unreadable):
        keys.unwrap("usr_2", wrapped)
    with pytest.raises(Unreadable, match="personal_key_hex"):
        PersonKeys(b"x" * 32).unwrap("usr_1", wrapped)


def test_a_key_does_not_show() -> None:
    person = PersonKey("usr_1", b"secret" * 4)
    assert "secret" not in repr(person)
