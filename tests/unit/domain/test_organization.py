from command_api.domain.aggregates import AGGREGATES
from command_api.domain.organization import Active
from schemas.commands.identity import CreateOrganization
from schemas.events.identity import MemberAdded, OrganizationCreated, WorkspaceCreated
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
