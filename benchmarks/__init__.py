"""Measurements, each one command that starts and stops its own servers: `python -m benchmarks NAME`."""
