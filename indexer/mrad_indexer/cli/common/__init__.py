"""What several commands share: options, the console, advice."""
