"""Scores of answers: numbers worked out by hand in several scripts, and the usual libraries on English."""

import random
import string
import unicodedata
from decimal import Decimal

import numpy as np
import pytest
from rouge_score import rouge_scorer
from sacrebleu.metrics.chrf import CHRF
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from mwork_jax.errors import InputError
from mwork_jax.metrics import (
    NORMALISATIONS,
    McNemar,
    Spread,
    answer_exact,
    answer_f1,
    benjamini_hochberg,
    choice_right,
    chrf,
    corrected,
    holm,
    mcnemar,
    normalised,
    number_exact,
    number_readings,
    plain_number,
    rouge_l,
    spread,
    squad_v11_exact,
    squad_v11_f1,
)
from mwork_jax.metrics.answers import answer_units, summary_units
from mwork_jax.runtime.time_limit import time_limit

THAI_SUN, THAI_MOON = "ดวงอาทิตย์", "ดวงจันทร์"  # 8 characters with their marks, and 7; the first three are the same


@pytest.mark.parametrize(
    ("language", "answer", "reference", "expected"),
    [
        ("zh", "巴黎圣母院", "圣母院", 6 / 8),
        ("zh", "308分", "308", 2 / 3),  # a number is one unit
        ("zh", "《圣母院》。", "圣母院", 1),
        ("zh", "北京", "上海", 0),
        ("th", THAI_SUN, THAI_MOON, 6 / 15),
        ("th", "๓๐๘ คะแนน", "308", 2 / 7),
        ("ar", "في الصين", "الصين", 2 / 3),
        ("ar", "الشمس؟", "شمس", 1),  # al- is an article
        ("ar", "الف", "ف", 0),  # not where fewer than three letters remain
        ("ar", "٣٠٨", "308", 1),
        ("de", "der große rote Ball", "ein roter Ball", 2 / 5),
        ("de", "die STRASSE", "Straße", 1),
        ("sw", "kilomita 42", "42 km.", 2 / 4),
        ("sw", "a the Nairobi", "Nairobi", 2 / 4),  # Swahili has no articles
        ("ru", "в городе Париже", "«городе Париже»", 4 / 5),
        ("ru", "Париж", "Париже", 0),
        ("fr", "l’école", "école", 1),
        ("vi", "Ha\u0300 No\u0323\u0302i", "hà nội", 1),  # decomposed letters
        ("en", "", "...", 1),
        ("en", "", "Paris", 0),
    ],
)
def test_answer_f1_by_hand(language, answer, reference, expected):
    assert answer_f1(answer, [reference], language) == pytest.approx(expected)
    assert answer_exact(answer, [reference], language) == (expected == 1)


def test_units_keep_marks_with_their_letters_and_order_counts():
    assert answer_units("ที่นี่ 2 คน GPS", "th") == ["ที่", "นี่", "2", "ค", "น", "gps"]
    assert answer_units("日本のGPS-3は", "ja") == ["日", "本", "の", "gps3", "は"]
    assert summary_units("日本のGPS-3は", "ja") == ["日", "本", "の", "gps", "3", "は"]
    assert answer_f1("圣母 巴黎", ["巴黎圣母"], "zh") == 1
    assert answer_exact("圣母 巴黎", ["巴黎圣母"], "zh") == 0


def test_the_best_reference_counts():
    assert answer_f1("red ball", ["blue", "the red ball", "ball"], "en") == 1
    assert answer_exact("Ball", ["blue", "the red ball", "ball"], "en") == 1
    assert squad_v11_f1("red ball", ["blue", "ball"]) == pytest.approx(2 / 3)
    assert rouge_l("red ball", ["blue", "ball"], "en") == pytest.approx(2 / 3)


def english_texts(count):
    rng = random.Random(0)
    words = ["the", "a", "an", "The", "cat", "mat", "U.S.", "$5", "sat,", "it's", "on", "42", "A.", "(end)"]
    return [" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(count)]


def squad_reference(answer, reference):
    """F1 and exact match step by step as the definition of SQuAD v1.1 has them."""

    def tokens(text):
        text = "".join(" " if c.isspace() else c for c in text.lower() if c not in set(string.punctuation))
        return [word for word in text.split() if word not in {"a", "an", "the"}]

    ours, theirs = tokens(answer), tokens(reference)
    left, same = list(theirs), 0
    for word in ours:
        if word in left:
            left.remove(word)
            same += 1
    if same == 0:
        return 0.0, float(ours == theirs)
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall), float(ours == theirs)


def test_english_equals_squad_v11():
    texts = english_texts(400)
    for answer, reference in zip(texts[::2], texts[1::2], strict=True):
        f1, exact = squad_reference(answer, reference)
        assert squad_v11_f1(answer, [reference]) == pytest.approx(f1)
        assert squad_v11_exact(answer, [reference]) == exact
        assert answer_exact(answer, [reference], "en") == exact
        assert answer_f1(answer, [reference], "en") == pytest.approx(max(f1, exact))


def test_plain_squad_does_not_know_other_scripts():
    assert squad_v11_f1("巴黎圣母院", ["圣母院"]) == 0
    assert squad_v11_f1("die Straße", ["Straße"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("language", "answer", "reference", "expected"),
    [
        ("zh", "今天天气很好。", "今天很好", 8 / 10),
        ("th", THAI_SUN, THAI_MOON, 6 / 15),
        ("ar", "القط ينام في البيت", "القط في البيت الكبير", 6 / 8),
        ("de", "Die Sonne scheint.", "die Sonne scheint heute", 6 / 7),
        ("sw", "mtoto anasoma kitabu kipya", "Mtoto anasoma gazeti", 4 / 7),
        ("ru", "кошка сидит на окне", "на окне сидит кошка", 4 / 8),
        ("en", "", "cat", 0),
    ],
)
def test_rouge_l_by_hand(language, answer, reference, expected):
    assert rouge_l(answer, [reference], language) == pytest.approx(expected)
    assert rouge_l(reference, [reference], language) == 1


def test_rouge_l_equals_rouge_score_on_english():
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    texts = english_texts(200)
    for answer, reference in zip(texts[::2], texts[1::2], strict=True):
        expected = scorer.score(reference, answer)["rougeL"].fmeasure
        assert rouge_l(answer, [reference], "en") == pytest.approx(expected)
    same = "今天天气很好"
    assert scorer.score(same, same)["rougeL"].fmeasure == 0  # why it is not used


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("今天", "今天好"), ("กา", "กาก"), ("شم", "شمس"), ("So", "Son"), ("ji", "jib"), ("до", "дом")],
)
def test_chrf_by_hand(answer, reference):
    # Characters and pairs of them: precision 1 and 1, recall 2/3 and 1/2, so 7/12; F with recall counting twice: 7/11.
    assert chrf(answer, [reference]) == pytest.approx(7 / 11)
    assert chrf(reference, ["x", reference]) == pytest.approx(1)


def test_chrf_equals_sacrebleu():
    texts = english_texts(60)
    for answer, reference in zip(texts[::2], texts[1::2], strict=True):
        assert chrf(answer, [reference]) == CHRF().sentence_score(answer, [reference]).score / 100


@pytest.mark.parametrize("score", [answer_f1, answer_exact, rouge_l])
def test_no_reference(score):
    with pytest.raises(InputError, match="at least one"):
        score("x", [], "en")
    with pytest.raises(InputError, match="at least one"):
        chrf("x", [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15", [15]),
        ("so 96 - 75 - 6 = 15 are left", [15]),
        ("es sind -7 Grad", [-7]),
        ("температура \u22127", [-7]),
        ("答案是-5", [-5]),
        ("答案是－５。", [-5]),
        ("คำตอบ -๗.๕", ["-7.5"]),
        ("10 -4", [4]),
        ("10-4", [4]),
        ("(2+3)-4", [4]),
        ("covid-19", [19]),
        ("- 3", [3]),  # a bullet
        ("it costs $-5", [-5]),
        ("a loss of -$5", [-5]),
        ("8,75 Euro", ["8.75"]),
        ("8.75.", ["8.75"]),
        ("**15**", [15]),
        ("$\\boxed{15}$", [15]),
        ("3 500", [3500]),
        ("3\u00a0500,25 €", ["3500.25"]),
        ("12\u202f345\u202f678", [12345678]),
        ("1'234", [1234]),
        ("1’234.50", ["1234.5"]),
        ("1,234,567.8", ["1234567.8"]),
        ("1.234.567,8", ["1234567.8"]),
        ("1,00,000", [100000]),
        ("2,125", [2125, "2.125"]),
        ("2.125", [2125, "2.125"]),
        ("0.125", ["0.125"]),
        ("1234.567", ["1234.567"]),
        ("١٬٢٣٤٫٥", ["1234.5"]),
        ("\u200f-١٥", [-15]),
        ("२५", [25]),
        ("๑๕", [15]),
        ("１５", [15]),
        ("15 m²", [15]),  # no digit of a number
        ("in 2020 100", [100]),
        ("12, 300", [300]),
        ("first 3, then 4, 5", [5]),
        ("$9{,}500.", [9500, "9.5"]),
        ("\\boxed{9{,}500}", [9500, "9.5"]),
        ("9\\,500", [9500]),
        ("3{,}25", ["3.25"]),
        ("70，000", [70000]),
        ("1，234，567", [1234567]),
        ("15，20", [20]),
        ("15, 20", [20]),
        ("12万", [120000]),
        ("1.5万元", [15000]),
        ("1万2千", [12000]),
        ("1億2000万円", [120000000]),
        ("3만 5", [5]),
        ("共3千克", [3000]),
        ("5k", [5000]),
        ("2.5K", [2500]),
        ("5 km", [5]),
        ("5kg", [5]),
        ("2 million dollars", [2000000]),
        ("3 millones", [3000000]),
        ("5 тысяч рублей", [5000]),
        ("2 ล้าน", [2000000]),
        ("5พันบาท", [5000]),
        ("the mil is 5 milk", [5]),
        ("540 (= 3 x 3 x 60)", [540]),
        ("540 (= 3 x 3 x 60) apples", [540]),
        ("3 boxes (3 x 4 = 12)", [12]),
        ("the total (= 540)", [540]),
        ("1/2", ["0.5"]),
        ("2 1/2 cups", ["2.5"]),
        ("-3/4", ["-0.75"]),
        ("\\frac{1}{4}", ["0.25"]),
        ("1/0", [0]),
        ("3/4/2024", [2024]),
        ("none", []),
    ],
)
def test_last_number(text, expected):
    assert number_readings(text) == tuple(Decimal(value) for value in expected)


@pytest.mark.parametrize(
    ("text", "phrases", "expected"),
    [
        ("The answer is 15. That took 2 steps.", ["the answer is"], 15),
        ("The answer is 3. No: THE ANSWER IS **15**, 2 steps", ["the answer is"], 15),
        ("The answer is 96 - 75 - 6 = 15.\nStep 2", ["the answer is"], 15),
        ("The answer is:\n\n15\nStep 2", ["the answer is"], 15),
        ("答案是15个。共2步", ["答案是"], 15),
        ("คำตอบคือ ๑๕ ก้อน\n2", ["คำตอบคือ"], 15),
        ("الجواب هو ١٥. الخطوة ٢", ["الجواب هو"], 15),
        ("Die Antwort lautet −7. Schritt 2", ["die antwort ist", "die antwort lautet"], -7),
        ("Jibu ni 15. Hatua 2", ["jibu ni"], 15),
        ("Ответ: 8,75. Шаг 2", ["ответ:"], "8.75"),
        ("15. So the answer is clear", ["the answer is"], 15),
        ("The answer is 5 (since x = 10)", ["the answer is"], 5),
        ("The answer is 540 (= 3 x 3 x 60) apples", ["the answer is"], 540),
        ("The answer is 5k, in 3 steps", ["the answer is"], 5000),
    ],
)
def test_number_after_the_phrase(text, phrases, expected):
    assert number_readings(text, phrases) == (Decimal(expected),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2½", "2.5"),
        ("½", "0.5"),
        ("-½", "-0.5"),
        ("1,500½", "1500.5"),
        ("1\u20442", "0.5"),
        ("2 1\u20442", "2.5"),
        ("2¹\u2044₂", "2.5"),
        ("1/3, 1/2", "0.5"),
        ("9\\!500", "9500"),
        ("10,\\!000", "10000"),
        ("9\\text{,}500", "9500"),
        ("9{\\,}500", "9500"),
        ("5\\text{ million}", "5000000"),
        ("-\\frac{1}{2}", "-0.5"),
        ("\\frac{-1}{2}", "-0.5"),
        ("\\frac12", "0.5"),
        ("2\\frac12", "2.5"),
        ("\\frac123", "3"),  # a half, and 3
    ],
)
def test_fractions_and_latex(text, expected):
    assert number_readings(text)[0] == Decimal(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 тыс.", 5000),
        ("5тыс. рублей", 5000),
        ("2,5 Mio.", 2500000),
        ("3 Mrd. Euro", 3 * 10**9),
        ("2 mil millones", 2 * 10**9),
        ("3 tỉ", 3 * 10**9),
        ("3 ti\u0309", 3 * 10**9),  # the mark on its own
        ("2 triệu 500 nghìn", 2500000),
        ("٣ الاف", 3000),
        ("15 ألفًا", 15000),
        ("elfu 5", 5000),
        ("laki 2", 200000),
        ("milioni 3", 3000000),
        ("milioni 3 na laki 2", 3200000),
        ("-elfu 5", -5000),
        ("5천만", 50000000),
        ("5千万円", 50000000),
        ("3百", 300),
        ("2兆", 2 * 10**12),
        ("2조 원", 2 * 10**12),
        ("12万5千3百", 125300),
        ("3千5百万", 35000000),
        ("1.2万亿", 12 * 10**11),
        ("0.5万", 5000),
        ("3만 5천 원", 35000),
        ("5พันล้าน", 5 * 10**9),
        ("1แสน5หมื่น", 150000),
        ("$2M", 2000000),
        ("$2m", 2000000),
        ("2M", 2000000),
        ("2 M€", 2000000),
        ("$3bn", 3 * 10**9),
    ],
)
def test_scale_words(text, expected):
    assert number_readings(text) == (Decimal(expected),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 \\times 10^4", 30000),
        ("3 \\cdot 10^{4}", 30000),
        ("3 × 10⁴", 30000),
        ("2 × 10⁻²", "0.02"),
        ("1e3", 1000),
        ("1.5E-3", "0.0015"),
        ("x = 10^2", 100),
        ("2^{10}", 1024),
        ("15 m^2", 15),
        ("540 (3 x 3 x 60)", 540),
    ],
)
def test_powers_and_products(text, expected):
    assert number_readings(text) == (Decimal(expected),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("page 2 of 3", 3),
        ("1e", 1),
        ("item 1e3f", 3),
        ("0^0", 0),
        ("3 x 4", 4),
        ("540 (3 x 4)", 4),  # another product: a list
        ("3 M people", 3),
        ("5m", 5),
        ("5 m", 5),
        ("$5m$", 5),
        ("$5m = 3$", 3),
        ("5 million 3", 3),
        ("5 million 7 million", 7000000),
        ("3 tỉnh", 3),  # provinces
        ("피자 2조각", 2),  # pieces
        ("3만큼", 3),  # as much as
        ("5兆字节", 5),  # megabytes
        ("5 พันธุ์", 5),  # species
    ],
)
def test_near_misses_stay_as_they_are(text, expected):
    assert number_readings(text) == (Decimal(expected),)


def test_both_readings_are_multiplied():
    assert number_readings("2,125万3千") == (Decimal(21253000), Decimal(24250))


def test_phrases_are_compared_in_one_spelling():
    assert number_readings("الاجابة هي 15. الخطوة 2", ["الإجابة هي"]) == (Decimal(15),)
    assert number_readings(unicodedata.normalize("NFD", "Đáp án là 15. Bước 2"), ["đáp án là"]) == (Decimal(15),)


@pytest.mark.parametrize(
    "part",
    [
        *("10,", "10 ", "1,000,", "100/", "1万", "(= 1", "-", "1{,}", "5 million "),
        *("½ ", "1 \\times 10^4 ", "5千3百万", "elfu 5 na ", "\\frac1", "$1", "5 (3 x 3 ", "¹"),
    ],
)
def test_long_answers_are_read_in_time(part):
    """Time grows with the length: with its square, these would take minutes: 60,000 characters took 12 s."""
    with time_limit(60, f"reading {part!r} again and again takes too long"):
        number_readings((part * 200_000)[:200_000])


def test_number_exact():
    assert number_exact("es sind 2.125 Euro", "2,125") == 1
    assert number_exact("2 125 €", "2125") == 1
    assert number_exact("15.0", "15") == 1
    assert number_exact("-15", "15") == 0
    assert number_exact("none", "15") == 0
    for wrong in ("", "fifteen", "nan", "1/2"):
        with pytest.raises(InputError, match=r"row 3: .* is not a number"):
            plain_number(wrong, "row 3")


def test_choices_under_each_normalisation():
    said, texts, tokens = [-6.0, -4.0, -9.0], ["ab", "b", "สี"], [2, 1, 9]
    assert NORMALISATIONS == ("sum", "per_token", "per_byte")
    assert normalised(said, "sum").tolist() == said
    assert normalised(said, "per_token", tokens=tokens).tolist() == [-3, -4, -1]
    assert normalised(said, "per_byte", texts=texts).tolist() == [-3, -4, -1.5]
    assert [choice_right(normalised(said, "sum"), i) for i in range(3)] == [0, 1, 0]
    assert [choice_right(normalised(said, "per_byte", texts=texts), i) for i in range(3)] == [0, 0, 1]
    assert choice_right([1.0, 1.0, 0.0], 1) == 0.5
    with pytest.raises(InputError, match="choose sum"):
        normalised(said, "per_word")
    with pytest.raises(InputError, match="length of at least 1"):
        normalised(said, "per_byte", texts=["a", "", "b"])
    with pytest.raises(InputError, match="must be numbers"):
        choice_right([float("nan"), 1.0], 0)
    with pytest.raises(InputError, match="the answer one of them"):
        choice_right([0.0, 1.0], -1)


def test_mcnemar_by_hand_and_as_statsmodels():
    # 1 gained of 6 changed: 2 (1 + 6) / 64.
    found = mcnemar([1, 1, 1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0, 1])
    assert (found.lost, found.gained) == (5, 1)
    assert found.p == pytest.approx(14 / 64)
    assert mcnemar([1, 0], [1, 0]) == McNemar(0, 0, 1.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        before, after = rng.integers(0, 2, 60), rng.integers(0, 2, 60) * rng.integers(0, 2, 60)
        table = [[((before == i) & (after == j)).sum() for j in (0, 1)] for i in (0, 1)]
        assert mcnemar(before, after).p == pytest.approx(reference_mcnemar(table, exact=True).pvalue)
    with pytest.raises(InputError, match="0 and 1"):
        mcnemar([0.5], [1])
    with pytest.raises(InputError, match="2 before and 1 after"):
        mcnemar([1, 0], [1])


def test_mcnemar_tells_when_it_ignores_clusters():
    before, after = [1, 1, 0], [0, 1, 1]
    assert not mcnemar(before, after).ignores_clusters
    assert not mcnemar(before, after, ["a", "b", "c"]).ignores_clusters
    clustered = mcnemar(before, after, np.array([4, 7, 4]))
    assert clustered.ignores_clusters
    assert clustered.p == mcnemar(before, after).p
    with pytest.raises(InputError, match="2 ids of 3 items"):
        mcnemar(before, after, ["a", "b"])


def test_corrections_by_hand_and_as_statsmodels():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert benjamini_hochberg([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.04, 0.04])
    rng = np.random.default_rng(1)
    for size in (1, 2, 19, 40):
        p = rng.random(size) ** 3
        p[0] = p[-1]  # a tie
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
        np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])
    assert holm([]).size == benjamini_hochberg([]).size == 0
    for correct in (holm, benjamini_hochberg):
        with pytest.raises(InputError, match="0 to 1"):
            correct([0.1, float("nan")])


def test_tests_without_a_p_are_no_part_of_the_family():
    assert corrected([0.01, None, 0.04, 0.03, None]) == [pytest.approx(0.03), None, *[pytest.approx(0.06)] * 2, None]
    assert corrected([None, 0.01, 0.04, 0.03], benjamini_hochberg)[1:] == pytest.approx([0.03, 0.04, 0.04])
    assert corrected([None]) == [None]
    assert corrected([]) == []
    with pytest.raises(InputError, match="0 to 1"):
        holm([0.1, None])


def test_spread():
    values = [1.0, 2.0, 6.0, 3.0, 3.0]
    result = spread(values)
    assert (result.mean, result.low, result.high, result.seeds) == (3, 1, 6, 5)
    assert result.std == pytest.approx(stats.tstd(values))
    # Fewer than 5 seeds: a mean, what was lowest and highest, and no standard deviation, which reads as an interval.
    assert spread(values[:3]) == Spread(3.0, None, 1.0, 6.0, 3)
    assert spread([4.0]).std is None
    with pytest.raises(InputError, match="at least one seed"):
        spread([])
