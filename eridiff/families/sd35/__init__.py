"""SD 3.5 (Medium, Large): MMDiT, two CLIP encoders and T5, rectified flow."""
