"""Pictures drawn with a LoRA, and what they measure."""
