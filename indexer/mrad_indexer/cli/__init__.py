"""The `mrad` command, a file a command."""
