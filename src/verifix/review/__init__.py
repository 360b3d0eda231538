"""A local page on which people verify samples by keyboard, and when they may stop."""
