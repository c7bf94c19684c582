"""Responses to embeddings and features of images: networks, their training, retrieval."""
