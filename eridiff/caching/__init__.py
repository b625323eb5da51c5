"""The two caching stages: latents and text embeddings, encoded once for everything they depend on."""
