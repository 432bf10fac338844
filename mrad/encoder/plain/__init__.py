"""Encoders whose patches are the plain tokens of their last block: any CLIP's, and timm's transformers."""
