"""`mrad serve`, `mrad keys`, `mrad memory`."""
