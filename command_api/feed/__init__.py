"""The live feed: subscriptions over one WebSocket, caught up from the log and then following it."""
