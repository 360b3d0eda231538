"""Run a borrowed model on samples, and give it back as it was."""
