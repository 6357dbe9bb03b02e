"""BlazingText: word vectors and text classification."""
