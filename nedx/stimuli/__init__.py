"""Image sets to lazy pixels; named preprocessing policies."""
