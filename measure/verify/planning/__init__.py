"""What `verify-parallel` will run: layouts, the few that cover many, the whole plan. No torch."""
