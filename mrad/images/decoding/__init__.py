"""Files to samples: one module for each family of formats."""
