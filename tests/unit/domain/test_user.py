from command_api.domain.aggregates import AGGREGATES
from schemas.commands.identity import EraseUser, RecordLogin, RegisterUser, RevokeTokenFamily
from schemas.events.identity import TokenFamilyRevoked, UserErased, UserLoggedIn, UserRegistered
from schemas.ids import Prefix
from tests.unit.domain.samples import USER
from tests.unit.domain.spec import Spec

user = Spec(AGGREGATES[Prefix.USER])
REGISTER = RegisterUser(user_id=USER, username_ciphertext="u", email_ciphertext="e")
REGISTERED = UserRegistered(username_ciphertext="u", email_ciphertext="e")
REVOKE = RevokeTokenFamily(user_id=USER, family_id="f", reason="logout")
REVOKED = TokenFamilyRevoked(family_id="f", reason="logout")


def test_a_person_signs_up_once() -> None:
    user.given().when(REGISTER).then(REGISTERED)
    user.given(REGISTERED).when(REGISTER).then_nothing()


def test_an_id_is_never_used_for_another_person() -> None:
    other = REGISTER.model_copy(update={"email_ciphertext": "x"})
    user.given(REGISTERED).when(other).then_refused("user_exists")


def test_every_login_is_recorded() -> None:
    user.given(REGISTERED).when(RecordLogin(user_id=USER)).then(UserLoggedIn())
    user.given(REGISTERED, UserLoggedIn()).when(RecordLogin(user_id=USER)).then(UserLoggedIn())


def test_a_token_family_is_revoked_once() -> None:
    user.given(REGISTERED).when(REVOKE).then(REVOKED)
    user.given(REGISTERED, REVOKED).when(REVOKE).then_nothing()


def test_a_person_is_erased_once_and_never_comes_back() -> None:
    erase = EraseUser(user_id=USER, organization_ids=(), requested_by=USER)
    erased = UserErased(requested_by=USER)
    user.given(REGISTERED, UserLoggedIn(), REVOKED).when(erase).then(erased)
    user.given(REGISTERED, erased).when(erase).then_nothing()
    user.given().when(erase).then_refused("not_found")
    user.given(REGISTERED, erased).when(RecordLogin(user_id=USER)).then_refused("not_found")
    user.given(REGISTERED, erased).when(REVOKE).then_refused("not_found")
    user.given(REGISTERED, erased).when(REGISTER).then_refused("user_exists")


def test_nobody_can_log_in_before_signing_up() -> None:
    user.given().when(RecordLogin(user_id=USER)).then_refused("not_found")
    user.given().when(REVOKE).then_refused("not_found")
