"""The HTTP service: scoring, living memories, swapping, the Open Inference Protocol."""
