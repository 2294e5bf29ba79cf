"""What to cite: the paper whose methods these are, and this software. CITATION.cff says the same."""

from mwork_jax.version import __version__

PAPER = """\
@inproceedings{zhao2024multilingualism,
  title     = {How do Large Language Models Handle Multilingualism?},
  author    = {Zhao, Yiran and Zhang, Wenxuan and Chen, Guizhen and Kawaguchi, Kenji and Bing, Lidong},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {37},
  year      = {2024},
  url       = {https://arxiv.org/abs/2402.18815}
}
"""
SOFTWARE = f"""\
@software{{mworkjax,
  title   = {{mwork-jax: how language models handle languages, in JAX}},
  author  = {{{{The mwork-jax authors}}}},
  version = {{{__version__}}}
}}
"""


def bibtex() -> str:
    """Both entries."""
    return f"{PAPER}\n{SOFTWARE}"
