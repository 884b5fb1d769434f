"""Settings of a model that trains a step in milliseconds; the text is given by the test."""

TINY = (
    "data.tokenizer_vocab=400",
    "data.sentinels=20",
    "data.encoder_length=32",
    "data.workers=0",
    "model.vocab_size=512",
    "model.d_model=32",
    "model.d_ff=64",
    "model.d_kv=8",
    "train.global_batch=8",
    "train.eval_batches=2",
    "launch.nproc=1",
)
