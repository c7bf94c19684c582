"""What responses carry: noise in place of channels, regions and times, and what is lost by it."""
