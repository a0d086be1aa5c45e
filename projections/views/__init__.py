"""The read models, one file each: tables, fold and queries together."""
