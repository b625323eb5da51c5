"""Bases: which models are meant, where their files lie on this machine, and how they come in."""
