"""Exchange of labels with other tools: what they found is read, and what was verified is written for them."""
