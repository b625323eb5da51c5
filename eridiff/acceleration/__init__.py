"""What makes a denoiser's steps fast: each lever by itself, and the choice among them."""
