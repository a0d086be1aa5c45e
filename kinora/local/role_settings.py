"""The settings of every role when the servers are embedded ones."""

import hashlib
import hmac
from collections.abc import Sequence

from pydantic import SecretStr

from command_api.settings import (
    ApiSettings,
    AuditorSettings,
    ControlSecrets,
    NatsOperatorSettings,
    OrchestratorSettings,
)
from kinora.local.ports import LOOPBACK
from kinora.local.servers import EmbeddedServers
from projections.settings import ProjectionsSettings
from schemas.base import Message
from schemas.ids import AgentId, OrganizationId
from schemas.settings import MetricsSettings, NatsUser
from trainer_agent.settings import AgentSettings


class EnrolledAgent(Message):
    """Who the agent of this machine is, as the control plane answered when it was enrolled."""

    agent_id: AgentId
    organization_id: OrganizationId
    pool: str
    name: str
    jwt: str
    """Of its enrolment; the agent keeps the renewed ones in its work folder."""
    seed: SecretStr


def api_settings(servers: EmbeddedServers, import_roots: Sequence[str] = ()) -> ApiSettings:
    """The API of an embedded installation."""
    return ApiSettings(
        host=LOOPBACK,
        port=servers.ports.api,
        public_url=servers.api_url,
        postgres=servers.postgres,
        nats=servers.nats_control,
        s3=servers.s3,
        secrets=_control_secrets(servers),
        disk_folder=servers.folder.root,
        metrics_token=metrics_token(servers),
        import_roots=tuple(import_roots),
    )


def orchestrator_settings(servers: EmbeddedServers, import_roots: Sequence[str] = ()) -> OrchestratorSettings:
    """The orchestrator of an embedded installation."""
    standard: int = OrchestratorSettings.model_fields["events_max_bytes"].default
    return OrchestratorSettings(
        postgres=servers.postgres,
        nats=servers.nats_control,
        nats_operator=NatsOperatorSettings(
            operator_seed=servers.secrets.nats_operator_seed, system_seed=servers.secrets.nats_system_seed
        ),
        s3=servers.s3,
        secrets=_control_secrets(servers),
        audit_key_pem=servers.secrets.audit_private_key_pem,
        # Streams reserve what they may fill; a quarter leaves room for the others on a small disk.
        events_max_bytes=min(standard, servers.nats_store_bytes // 4),
        work_folder=str(servers.folder.imports),
        import_roots=tuple(import_roots),
        metrics=_metrics(servers, servers.ports.orchestrator_metrics),
    )


def projections_settings(servers: EmbeddedServers) -> ProjectionsSettings:
    """The read side of an embedded installation."""
    return ProjectionsSettings(
        postgres=servers.postgres, metrics=_metrics(servers, servers.ports.projections_metrics)
    )


def auditor_settings(servers: EmbeddedServers) -> AuditorSettings:
    """The auditor of an embedded installation."""
    return AuditorSettings(
        postgres=servers.postgres,
        nats=servers.nats_control,
        metrics=_metrics(servers, servers.ports.auditor_metrics),
    )


def agent_settings(servers: EmbeddedServers, agent: EnrolledAgent) -> AgentSettings:
    """The one agent of an embedded installation."""
    return AgentSettings(
        agent_id=agent.agent_id,
        organization_id=agent.organization_id,
        pool=agent.pool,
        name=agent.name,
        nats=NatsUser(url=servers.nats_control.url, jwt=agent.jwt, seed=agent.seed),
        api_url=servers.api_url,
        work_folder=servers.folder.agent_work,
        metrics=_metrics(servers, servers.ports.agent_metrics),
    )


def metrics_token(servers: EmbeddedServers) -> SecretStr:
    """What opens the metrics of this installation's processes: always the same, and nothing else's key."""
    key = bytes.fromhex(servers.secrets.index_key_hex.get_secret_value())
    return SecretStr(hmac.digest(key, b"metrics", hashlib.sha256).hex())


def _metrics(servers: EmbeddedServers, port: int) -> MetricsSettings:
    return MetricsSettings(host=LOOPBACK, port=port, token=metrics_token(servers))


def _control_secrets(servers: EmbeddedServers) -> ControlSecrets:
    secrets = servers.secrets
    return ControlSecrets(
        token_private_key_pem=secrets.token_private_key_pem,
        personal_key_hex=secrets.personal_key_hex,
        index_key_hex=secrets.index_key_hex,
    )
