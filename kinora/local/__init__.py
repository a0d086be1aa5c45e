"""PostgreSQL, NATS and S3 on this machine, as children of the process that needs them."""
