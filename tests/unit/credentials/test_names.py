"""Which spellings are one name."""

from command_api.credentials.names import name_digest, normal

KEY = b"k" * 32


def test_case_width_and_space_make_no_difference() -> None:
    assert {normal(text) for text in ("Ada", " ada ", "ADA", "\uff21da")} == {"ada"}
    assert normal("stra\u00dfe") == normal("STRASSE")
    assert normal("ada") != normal("adam")


def test_a_digest_depends_on_key_kind_and_name() -> None:
    digest = name_digest(KEY, "username", "ada")
    assert digest == name_digest(KEY, "username", "ADA")
    assert len(digest) == 32
    others = (
        name_digest(b"x" * 32, "username", "ada"),
        name_digest(KEY, "email", "ada"),
        name_digest(KEY, "username", "bob"),
    )
    assert digest not in others
