"""What is trained: layers beside the frozen ones."""
