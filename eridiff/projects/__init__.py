"""Projects: made from a folder of pictures, a preset or another trainer's configuration."""
