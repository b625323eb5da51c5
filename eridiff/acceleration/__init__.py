"""The fast path of training and sampling: kernels that are checked before they are used, compiled regions, graphs."""
