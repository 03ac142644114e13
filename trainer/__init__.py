"""A trainer that survives eviction: exact checkpoints, exact resume. Knows nothing of any cloud."""
