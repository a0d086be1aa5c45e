"""From a command to a committed decision: one handler per command, and the bus that runs them."""
