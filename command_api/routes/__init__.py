"""The HTTP door: one module per resource, thin enough that each reads as its documentation."""
