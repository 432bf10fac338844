"""Scores of images that the memory judged unseen -> thresholds; and thresholds that follow lessons."""
