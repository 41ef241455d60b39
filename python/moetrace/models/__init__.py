"""Models: where they keep what, and how they come back as they were."""
