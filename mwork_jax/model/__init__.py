"""The decoder and what runs it: forward pass, rows in slots, generation."""
