"""Files of model weights: formats, parts and names of tensors. Knows no family."""
