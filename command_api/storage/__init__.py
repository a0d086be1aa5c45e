"""What is stored and no longer needed: found, shown and deleted, without losing what somebody needs."""
