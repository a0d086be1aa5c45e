"""Lets anybody prove what the log held: a Merkle tree per organization, and signed heads over all of them."""
