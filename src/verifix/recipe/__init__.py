"""Which stages a correction runs, and how strongly: cross-fitting, candidates and the decision."""
