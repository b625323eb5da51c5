"""`eridiff why`: what the next run will do, and why."""
