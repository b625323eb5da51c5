"""The content-addressed store of latents and text embeddings. Knows neither pictures nor models."""
