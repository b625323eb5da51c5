"""A fourth family, as small as one can be."""
