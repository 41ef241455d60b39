"""In forwards of the user's own: what passes a place in the model is kept (capture) or replaced (patch)."""
