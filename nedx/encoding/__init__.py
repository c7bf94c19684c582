"""Image to response."""
