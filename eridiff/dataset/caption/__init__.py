"""Captions: whose each is, in which file, and the rules that clean it."""
