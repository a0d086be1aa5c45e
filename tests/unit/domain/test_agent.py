import pytest

from command_api.domain.aggregates import AGGREGATES
from schemas.commands import Command
from schemas.commands.agent import EnrollAgent, MarkAgentLost, MarkAgentOnline, ReportCapabilities
from schemas.events.agent import AgentEnrolled, AgentLost, AgentOnline, AgentProbed
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


@pytest.mark.parametrize("command", [PROBE, ONLINE, LOSE], ids=lambda command: command.TYPE)
def test_unknown_nodes_do_not_exist(command: Command) -> None:
    agent.given().when(command).then_refused("not_found")
