"""Which language answers are in, and how much they repeat themselves."""

import pytest

from mwork_jax.errors import InputError
from mwork_jax.metrics import harmonic_mean, identifier, language_share, repeated_share


@pytest.fixture(scope="module")
def identify():
    return identifier(("en", "de", "zh", "ar", "sw"))


@pytest.mark.parametrize(
    ("answer", "language", "share"),
    [
        ("Die Bäckerin hat noch fünfzehn Brötchen übrig.", "de", 1.0),
        ("Die Bäckerin hat noch fünfzehn Brötchen. There are fifteen rolls left on the tray.", "de", 0.5),
        ("她还剩下十五个面包。", "zh", 1.0),
        ("بقي لدى الخبازة خمس عشرة قطعة خبز.", "ar", 1.0),
        ("Mwokaji amebaki na mikate kumi na tano leo asubuhi.", "sw", 1.0),
        ("12 * 8 = 96\n96 - 75 = 21", "de", 0.0),
        ("", "de", 0.0),
        ("The answer is fifteen rolls of bread.", "de", 0.0),
    ],
)
def test_the_share_of_sentences_in_a_language(answer, language, share, identify):
    assert language_share(answer, language, identify) == share


def test_languages_that_cannot_be_told_apart_are_one_line():
    with pytest.raises(InputError, match="lingua does not know 'xx'"):
        identifier(("en", "xx"))
    with pytest.raises(InputError, match="'zh-TW' apart"):
        identifier(("zh", "zh-TW"))
    with pytest.raises(InputError, match="two languages"):
        identifier(("en",))


def test_repetition_is_what_was_written_before():
    assert repeated_share("every word here is new") == 0
    assert repeated_share("") == 0
    assert repeated_share("the same " * 50) > 0.95
    assert repeated_share("abcdefgh" * 2) == pytest.approx(1 / 9)


def test_the_harmonic_mean_is_low_where_either_is():
    assert harmonic_mean(0.5, 0.5) == 0.5
    assert harmonic_mean(1.0, 0.0) == 0.0
    assert harmonic_mean(1.0, 0.25) == pytest.approx(0.4)
