"""The latents of pictures: which are wanted, how they are cropped, encoded and kept."""
