"""Base models: families, loading in four bits, judging a checkpoint."""
