from command_api.domain.aggregates import AGGREGATES
from command_api.domain.organization import MOST_SECRETS, Active
from schemas.commands.identity import CreateOrganization, DeleteSecret, RemoveMember, StoreSecret
from schemas.events.identity import (
    MemberAdded,
    MemberRemoved,
    OrganizationCreated,
    SecretDeleted,
    SecretStored,
    WorkspaceCreated,
)
from schemas.ids import Prefix
from tests.unit.domain.samples import ORGANIZATION, USER, WORKSPACE, identifier
from tests.unit.domain.spec import Spec

organization = Spec(AGGREGATES[Prefix.ORGANIZATION])
CREATE = CreateOrganization(
    organization_id=ORGANIZATION, workspace_id=WORKSPACE, owner_id=USER, personal=True
)
BEGUN = (
    OrganizationCreated(organization_id=ORGANIZATION, personal=True),
    WorkspaceCreated(workspace_id=WORKSPACE, name="default"),
    MemberAdded(user_id=USER, role="owner"),
)


def test_an_organization_begins_with_a_workspace_and_an_owner() -> None:
    organization.given().when(CREATE).then(*BEGUN)
    assert organization.given(*BEGUN).state == Active(True, ((WORKSPACE, "default"),), ((USER, "owner"),))


def test_creating_it_again_does_nothing() -> None:
    organization.given(*BEGUN).when(CREATE).then_nothing()


def test_an_id_is_never_used_for_another_organization() -> None:
    other = CREATE.model_copy(update={"owner_id": identifier("usr", 2)})
    organization.given(*BEGUN).when(other).then_refused("organization_exists")


def test_secrets_are_told_by_name_only() -> None:
    store = StoreSecret(organization_id=ORGANIZATION, workspace_id=WORKSPACE, name="lab", kind="s3")
    delete = DeleteSecret(organization_id=ORGANIZATION, workspace_id=WORKSPACE, name="lab")
    stored = SecretStored(workspace_id=WORKSPACE, name="lab", kind="s3")
    deleted = SecretDeleted(workspace_id=WORKSPACE, name="lab")
    organization.given(*BEGUN).when(store).then(stored)
    organization.given(*BEGUN, stored).when(store).then(stored)
    organization.given(*BEGUN, stored).when(delete).then(deleted)
    organization.given(*BEGUN).when(delete).then_refused("secret_unknown")
    organization.given(*BEGUN, stored, deleted).when(delete).then_refused("secret_unknown")


def test_a_workspace_has_only_so_many_secrets() -> None:
    full = [
        SecretStored(workspace_id=WORKSPACE, name=f"s{number}", kind="token")
        for number in range(MOST_SECRETS)
    ]
    one_more = StoreSecret(organization_id=ORGANIZATION, workspace_id=WORKSPACE, name="one", kind="token")
    organization.given(*BEGUN, *full).when(one_more).then_refused("too_many_secrets")
    replaced = one_more.model_copy(update={"name": "s0"})
    organization.given(*BEGUN, *full).when(replaced).then(
        SecretStored(workspace_id=WORKSPACE, name="s0", kind="token")
    )


def test_nobody_stores_secrets_in_a_workspace_of_others() -> None:
    elsewhere = StoreSecret(
        organization_id=ORGANIZATION, workspace_id=identifier("ws", 9), name="lab", kind="s3"
    )
    organization.given(*BEGUN).when(elsewhere).then_refused("not_found")
    organization.given().when(elsewhere).then_refused("not_found")


def test_a_member_leaves_unless_others_would_be_left_without_an_owner() -> None:
    other = identifier("usr", 2)
    leave = RemoveMember(organization_id=ORGANIZATION, user_id=USER, reason="erased")
    left = MemberRemoved(user_id=USER, reason="erased")
    organization.given(*BEGUN).when(leave).then(left)
    organization.given(*BEGUN, left).when(leave).then_nothing()
    organization.given(*BEGUN, MemberAdded(user_id=other, role="owner")).when(leave).then(left)
    organization.given(*BEGUN, MemberAdded(user_id=other, role="admin")).when(leave).then_refused(
        "sole_owner"
    )
    stranger = leave.model_copy(update={"user_id": other})
    organization.given(*BEGUN).when(stranger).then_nothing()
    organization.given().when(leave).then_refused("not_found")
