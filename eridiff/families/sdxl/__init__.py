"""SDXL: UNet, CLIP-L and OpenCLIP-G, denoising diffusion."""
