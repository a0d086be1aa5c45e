"""What the control plane may connect to on behalf of others: addresses, and the guard below every client."""
