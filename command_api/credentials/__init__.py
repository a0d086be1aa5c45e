"""What must never stand in the log: password hashes, person keys, refresh tokens and who has which name."""
