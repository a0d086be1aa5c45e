"""What servers and answers without an end agree on; alone, because every process with a server needs it."""

ENDLESS = "endless"
"""In a request's state, where its answer has no end: an event for whoever stops the service to set."""
