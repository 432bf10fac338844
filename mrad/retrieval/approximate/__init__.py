"""Retrieval from cells: near keys one by one, far ones in closed form."""
