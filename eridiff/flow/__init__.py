"""Prefect: the served page, its gate, its form, and the runs that it starts."""
