"""The one door for chunkwise torch: model references, per-process cache, devices."""
