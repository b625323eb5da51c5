"""The content-addressed store of latents and text embeddings, which knows neither pictures nor models."""
