"""Models in memory: loaded, cast, quantised, adapted."""
