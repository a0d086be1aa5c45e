"""What may happen: pure decisions and folds, without clock or I/O."""
