"""Reading models, checkpoints and data from files, and writing corrected checkpoints."""
