"""Which samples to take: today those whose given label is probably correct."""
