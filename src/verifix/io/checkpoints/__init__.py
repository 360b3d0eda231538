"""Checkpoints of every form: read, matched to a model, written back in the same form, and undone."""
