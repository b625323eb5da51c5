"""Files that other programs load, and the proof that they do what the trained adapter does."""
