"""The command line and the demonstrations."""
