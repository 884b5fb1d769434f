"""Exchange with Hugging Face Transformers: T5 and Switch checkpoints in its names, shapes and configurations."""
