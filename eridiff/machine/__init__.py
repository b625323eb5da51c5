"""This machine: where things lie, its GPUs, its runs; all that changes no byte of any out."""
