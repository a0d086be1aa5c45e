"""Verifies an organization's export offline: no server, no database, only files and a public key."""
