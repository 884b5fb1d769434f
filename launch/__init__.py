"""How processes start: command line, torchrun, DeepSpeed, Slurm, Docker. Never imports torch."""
