"""The engine's benchmarks, one module for each goal: ``python -m benchmarks engine.NAME``."""
