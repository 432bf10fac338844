"""The paper's experiment as one command: memories, heads, all sixteen sets, one table."""
