"""The event log on PostgreSQL: the only truth; everything else is derived from it."""
