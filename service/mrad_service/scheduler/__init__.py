"""The queue of requests, batches, workers, retries."""
