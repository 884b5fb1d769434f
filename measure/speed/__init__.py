"""`pointsman bench`: timings as ratios against a peer that is measured in the same run."""
