"""Third parties that are sent the organization's events: their rights, secrets and how far they have read."""
