"""The study of precision: what an fp32 router is worth."""
