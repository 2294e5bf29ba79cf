"""What is switched off where: the stages of the paper's workflow and random controls (sections 3.3 to 3.6)."""
