"""The paper's own files, as its code saves them: read once, and kept in our formats."""
