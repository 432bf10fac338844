"""Reading pictures and masks, and what the encoder gets of them."""
