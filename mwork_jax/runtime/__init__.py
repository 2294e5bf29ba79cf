"""What every part needs from the machine: files, result cache, progress, several processes, what a compiler reports."""
