"""Which banks are served, and what serves them."""
