from command_api.handlers.base import StreamEvents
from schemas.commands.identity import SignUp
from schemas.events.identity import MemberAdded, OrganizationCreated, UserRegistered, WorkspaceCreated
from tests.unit.domain.samples import ORGANIZATION, USER, WORKSPACE
from tests.unit.handlers.given_streams import GivenStreams

SIGN_UP = SignUp(
    user_id=USER,
    organization_id=ORGANIZATION,
    workspace_id=WORKSPACE,
    username_ciphertext="u",
    email_ciphertext="e",
)
REGISTERED = UserRegistered(username_ciphertext="u", email_ciphertext="e")
CREATED = (
    OrganizationCreated(organization_id=ORGANIZATION, personal=True),
    WorkspaceCreated(workspace_id=WORKSPACE, name="default"),
    MemberAdded(user_id=USER, role="owner"),
)


def test_sign_up_makes_a_person_and_their_organization_together() -> None:
    assert GivenStreams({}).handle(SIGN_UP) == [
        StreamEvents(USER, 0, [REGISTERED]),
        StreamEvents(ORGANIZATION, 0, list(CREATED)),
    ]


def test_a_repeated_sign_up_makes_nothing() -> None:
    changes = GivenStreams({USER: (REGISTERED,), ORGANIZATION: CREATED}).handle(SIGN_UP)
    assert [list(change.events) for change in changes] == [[], []]
