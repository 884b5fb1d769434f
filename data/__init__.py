"""Text to batches: sources, tokenizer, tasks, loading. Never imports torch."""
