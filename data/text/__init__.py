"""Text to ids: tokenizers and how they are trained."""
