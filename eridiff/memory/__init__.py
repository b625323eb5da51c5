"""`eridiff plan`: the memory and time that each stage takes on a GPU, before it runs."""
