"""What params.yaml may say: a typed section each, no machinery."""
