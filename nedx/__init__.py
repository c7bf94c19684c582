"""The labelled, streaming, verifiable layer for image-evoked brain responses."""
