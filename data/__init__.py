"""Text to batches: sources, tokenizer, span corruption, loading. Never imports torch."""
