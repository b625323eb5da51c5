"""Flux.1 (dev, schnell): double and single stream transformer, CLIP-L and T5, rectified flow."""
