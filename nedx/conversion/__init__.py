"""One subject's responses in the neuroids of another."""
