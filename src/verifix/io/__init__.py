"""What a user brings and takes away: models, checkpoints and data."""
