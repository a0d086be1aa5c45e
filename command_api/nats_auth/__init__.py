"""Who may say what on NATS: keys, the JWTs that the control plane signs, and the rights in them."""
