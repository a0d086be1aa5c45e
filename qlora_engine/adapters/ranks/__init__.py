"""Which layer gets how much rank: gradients are measured, a budget is dealt out, layers are made larger."""
