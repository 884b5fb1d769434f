"""Studies: grids of ordinary runs that answer one question each, and the pages made from their metrics."""
