"""The logit lens: the language of the tokens that each layer would predict (Figure 1 of the paper)."""
