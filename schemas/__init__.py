"""What the processes of Kinora agree on: events, commands, messages and specs. pydantic and stdlib only."""
