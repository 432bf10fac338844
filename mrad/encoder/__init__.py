"""The frozen CLIP: images to features."""
