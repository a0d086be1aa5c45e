"""The composition root: CLI, settings, embedded servers and supervision. Nothing imports it."""
