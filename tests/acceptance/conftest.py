"""The running service and its samples."""

from tests.system_fixtures import registered, samples, service

__all__ = ["registered", "samples", "service"]
