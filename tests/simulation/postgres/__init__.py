"""A model of PostgreSQL as far as our statements can tell the difference."""
