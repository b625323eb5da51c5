"""All that knows DVC's files: stages, the graph, outs, locks, and what a kill leaves of them."""
