"""What a model can do under masks: loss, likelihood, tasks, and the rows of the paper's Tables 2 to 5."""
