"""BData, feature trees, decoders and converters, as they are published for feature decoding."""
