"""What must never change: events of every released version, and lives of every aggregate.

`python -m tests.golden.record` adds what is missing and never touches what is there.
"""
