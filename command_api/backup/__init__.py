"""Backups: the log, the credentials and the objects in one place, and an installation made of them again."""
