"""What a Prometheus on this machine needs to read the metrics of every role of an embedded installation."""

from kinora.local.ports import LOOPBACK
from kinora.local.private_file import write_private
from kinora.local.role_settings import metrics_token
from kinora.local.servers import EmbeddedServers

_JOB = """  - job_name: kinora-{role}
    authorization:
      credentials_file: {token}
    static_configs:
      - targets: ["{host}:{port}"]
"""


def write_scrape_configuration(servers: EmbeddedServers) -> None:
    """Write the token and a configuration for `prometheus --config.file=…` beside each other."""
    folder, ports = servers.folder, servers.ports
    write_private(folder.metrics_token, metrics_token(servers).get_secret_value())
    roles = {
        "api": ports.api,
        "orchestrator": ports.orchestrator_metrics,
        "projections": ports.projections_metrics,
        "auditor": ports.auditor_metrics,
        "agent": ports.agent_metrics,
    }
    jobs = "".join(
        _JOB.format(role=role, token=folder.metrics_token, host=LOOPBACK, port=port)
        for role, port in roles.items()
    )
    write_private(folder.scrape_configuration, f"global:\n  scrape_interval: 15s\nscrape_configs:\n{jobs}")
