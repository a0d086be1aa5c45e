from datetime import UTC, datetime

import pytest

from command_api.domain.aggregates import AGGREGATES
from schemas.commands import Command
from schemas.commands.agent import (
    EnrollAgent,
    IssueEnrolmentToken,
    JoinAgent,
    MarkAgentLost,
    MarkAgentOnline,
    ReportCapabilities,
    RevokeAgent,
)
from schemas.events.agent import (
    AgentEnrolled,
    AgentJoined,
    AgentLost,
    AgentOnline,
    AgentProbed,
    AgentRevoked,
    EnrolmentTokenIssued,
)
from schemas.ids import Prefix
from tests.unit.domain.samples import AGENT, CAPABILITIES
from tests.unit.domain.spec import Spec

agent = Spec(AGGREGATES[Prefix.AGENT])
ENROLL = EnrollAgent(agent_id=AGENT, name="node", pool="default")
ENROLLED = AgentEnrolled(name="node", pool="default")
PROBE = ReportCapabilities(agent_id=AGENT, capabilities=CAPABILITIES)
PROBED = AgentProbed(capabilities=CAPABILITIES)
ONLINE = MarkAgentOnline(agent_id=AGENT)
LOSE = MarkAgentLost(agent_id=AGENT, reason="lease_expired")
LOST = AgentLost(reason="lease_expired")
TOMORROW = datetime(2026, 11, 22, tzinfo=UTC)
ISSUE = IssueEnrolmentToken(agent_id=AGENT, expires_at=TOMORROW)
ISSUED = EnrolmentTokenIssued(expires_at=TOMORROW)
JOIN = JoinAgent(agent_id=AGENT, public_key="U" + "A" * 55)
JOINED = AgentJoined(public_key="U" + "A" * 55)
REVOKE = RevokeAgent(agent_id=AGENT, reason="stolen")
REVOKED = AgentRevoked(reason="stolen")


def test_a_node_is_enrolled_once() -> None:
    agent.given().when(ENROLL).then(ENROLLED)
    agent.given(ENROLLED).when(ENROLL).then_nothing()
    elsewhere = ENROLL.model_copy(update={"pool": "gpus"})
    agent.given(ENROLLED).when(elsewhere).then_refused("agent_exists")


def test_capabilities_are_recorded_when_they_change() -> None:
    agent.given(ENROLLED).when(PROBE).then(PROBED)
    agent.given(ENROLLED, PROBED, AgentOnline()).when(PROBE).then_nothing()
    more = CAPABILITIES.model_copy(update={"cpu_cores": 4})
    changed = ReportCapabilities(agent_id=AGENT, capabilities=more)
    agent.given(ENROLLED, PROBED).when(changed).then(AgentProbed(capabilities=more))


def test_being_heard_and_falling_silent_alternate() -> None:
    agent.given(ENROLLED).when(ONLINE).then(AgentOnline())
    agent.given(ENROLLED, AgentOnline()).when(ONLINE).then_nothing()
    agent.given(ENROLLED, AgentOnline()).when(LOSE).then(LOST)
    agent.given(ENROLLED, AgentOnline(), LOST).when(LOSE).then_nothing()
    agent.given(ENROLLED, AgentOnline(), LOST).when(ONLINE).then(AgentOnline())


def test_a_node_that_was_never_heard_cannot_be_lost() -> None:
    agent.given(ENROLLED).when(LOSE).then_nothing()


def test_capabilities_survive_silence() -> None:
    agent.given(ENROLLED, AgentOnline(), PROBED, LOST, AgentOnline()).when(PROBE).then_nothing()


def test_a_node_joins_with_its_key_and_a_repeat_changes_nothing() -> None:
    agent.given(ENROLLED).when(ISSUE).then(ISSUED)
    agent.given(ENROLLED, ISSUED).when(JOIN).then(JOINED)
    agent.given(ENROLLED, ISSUED, JOINED, AgentOnline(), LOST).when(JOIN).then_nothing()


def test_another_node_takes_the_place_of_a_lost_one() -> None:
    other = JoinAgent(agent_id=AGENT, public_key="U" + "B" * 55)
    story = (ENROLLED, ISSUED, JOINED, AgentOnline(), LOST, ISSUED)
    agent.given(*story).when(other).then(AgentJoined(public_key="U" + "B" * 55))


def test_a_revoked_agent_stays_out() -> None:
    story = (ENROLLED, ISSUED, JOINED, AgentOnline())
    agent.given(ENROLLED).when(REVOKE).then(REVOKED)
    agent.given(*story).when(REVOKE).then(REVOKED)
    agent.given(*story, REVOKED).when(REVOKE).then_nothing()
    agent.given(*story, REVOKED).when(LOSE).then_nothing()
    for command in (ENROLL, ISSUE, JOIN, PROBE, ONLINE):
        agent.given(*story, REVOKED).when(command).then_refused("agent_revoked")


@pytest.mark.parametrize(
    "command", [PROBE, ONLINE, LOSE, ISSUE, JOIN, REVOKE], ids=lambda command: command.TYPE
)
def test_unknown_nodes_do_not_exist(command: Command) -> None:
    agent.given().when(command).then_refused("not_found")
