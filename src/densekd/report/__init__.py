"""Pictures of predictions, for people."""
