"""See every multiplication of a parameter while a model runs, and reduce its rows to moments."""
