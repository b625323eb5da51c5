"""Files of model weights, of no family: formats, parts and names of tensors."""
