"""This machine: where things lie, its GPUs, its processes. Changes no byte of any out."""
