"""`mwork models`, and the page that has its table."""

import json

from mwork_jax.cli import main
from mwork_jax.cli.models import models_table
from mwork_jax.families import FAMILIES
from support.paths import ROOT


def test_every_family_is_listed(capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    listed = {family["model_type"]: family for family in json.loads(capsys.readouterr().out)}
    assert listed.keys() == FAMILIES.keys()
    assert all(family["about"] and family["about"] in text for family in listed.values())
    assert listed["gemma3_text"]["inside"] == ["gemma3"]


def test_the_page_of_models_has_the_table(capsys):
    assert main(["models", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == models_table()
    assert models_table() in (ROOT / "docs" / "models.md").read_text(), "python -m mwork_jax.cli models --markdown"
