"""The decoder and what runs it: forward pass, prefill, generation."""
