"""Statistics on predictions: metrics, significance, comparison, and checks of labels."""
