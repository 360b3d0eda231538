"""Which samples to take: those to verify, and those whose given label is probably correct."""
