"""An attempt from its spec to an adapter."""
