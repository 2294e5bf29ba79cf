"""The languages of ISO 639-1, and some that have three letters: what they are called in English and in themselves."""

from __future__ import annotations

from difflib import get_close_matches

# code: English name, and the language's own where it is another and sure.
_TABLE = """
aa Afar|ab Abkhazian|ae Avestan|af Afrikaans|ak Akan|am Amharic=አማርኛ|an Aragonese|ar Arabic=العربية|as Assamese
av Avaric|ay Aymara|az Azerbaijani|ba Bashkir|be Belarusian=беларуская|bg Bulgarian=български|bi Bislama|bm Bambara
bn Bengali=বাংলা|bo Tibetan|br Breton|bs Bosnian=bosanski|ca Catalan=català|ce Chechen|ch Chamorro|co Corsican|cr Cree
cs Czech=čeština|cu Church Slavic|cv Chuvash|cy Welsh=Cymraeg|da Danish=dansk|de German=Deutsch|dv Dhivehi|dz Dzongkha
ee Ewe|el Greek=Ελληνικά|en English|eo Esperanto|es Spanish=español|et Estonian=eesti|eu Basque=euskara
fa Persian=فارسی|ff Fulah|fi Finnish=suomi|fj Fijian|fo Faroese|fr French=français|fy Western Frisian|ga Irish=Gaeilge
gd Scottish Gaelic|gl Galician=galego|gn Guarani|gu Gujarati=ગુજરાતી|gv Manx|ha Hausa|he Hebrew=עברית|hi Hindi=हिन्दी
ho Hiri Motu|hr Croatian=hrvatski|ht Haitian Creole|hu Hungarian=magyar|hy Armenian=հայերեն|hz Herero|ia Interlingua
id Indonesian=Bahasa Indonesia|ie Interlingue|ig Igbo|ii Sichuan Yi|ik Inupiaq|io Ido|is Icelandic=íslenska
it Italian=italiano|iu Inuktitut|ja Japanese=日本語|jv Javanese|ka Georgian=ქართული|kg Kongo|ki Kikuyu|kj Kuanyama
kk Kazakh=қазақ тілі|kl Kalaallisut|km Khmer=ខ្មែរ|kn Kannada=ಕನ್ನಡ|ko Korean=한국어|kr Kanuri|ks Kashmiri|ku Kurdish
kv Komi|kw Cornish|ky Kyrgyz|la Latin|lb Luxembourgish|lg Ganda|li Limburgish|ln Lingala|lo Lao=ລາວ
lt Lithuanian=lietuvių|lu Luba-Katanga|lv Latvian=latviešu|mg Malagasy|mh Marshallese|mi Maori|mk Macedonian=македонски
ml Malayalam=മലയാളം|mn Mongolian=монгол|mr Marathi=मराठी|ms Malay=Bahasa Melayu|mt Maltese|my Burmese=မြန်မာ|na Nauru
nb Norwegian Bokmål|nd North Ndebele|ne Nepali=नेपाली|ng Ndonga|nl Dutch=Nederlands|nn Norwegian Nynorsk
no Norwegian=norsk|nr South Ndebele|nv Navajo|ny Chichewa|oc Occitan|oj Ojibwa|om Oromo|or Odia|os Ossetian
pa Punjabi=ਪੰਜਾਬੀ|pi Pali|pl Polish=polski|ps Pashto|pt Portuguese=português|qu Quechua|rm Romansh|rn Rundi
ro Romanian=română|ru Russian=русский|rw Kinyarwanda|sa Sanskrit|sc Sardinian|sd Sindhi|se Northern Sami|sg Sango
sh Serbo-Croatian|si Sinhala=සිංහල|sk Slovak=slovenčina|sl Slovenian=slovenščina|sm Samoan|sn Shona|so Somali
sq Albanian=shqip|sr Serbian=српски|ss Swati|st Southern Sotho|su Sundanese|sv Swedish=svenska|sw Swahili=Kiswahili
ta Tamil=தமிழ்|te Telugu=తెలుగు|tg Tajik|th Thai=ไทย|ti Tigrinya|tk Turkmen|tl Tagalog|tn Tswana|to Tongan
tr Turkish=Türkçe|ts Tsonga|tt Tatar|tw Twi|ty Tahitian|ug Uyghur|uk Ukrainian=українська|ur Urdu=اردو|uz Uzbek|ve Venda
vi Vietnamese=Tiếng Việt|vo Volapük|wa Walloon|wo Wolof|xh Xhosa|yi Yiddish|yo Yoruba|za Zhuang|zh Chinese=中文|zu Zulu
ast Asturian|ceb Cebuano|ckb Central Kurdish|fil Filipino|gsw Swiss German|haw Hawaiian|hmn Hmong|ilo Iloko
kmr Northern Kurdish|nds Low German|scn Sicilian|yue Cantonese
"""
# What is written for a code and is none, or another language's name in a computer's words.
_SLIPS = {
    "cn": "zh", "cz": "cs", "dk": "da", "gr": "el", "jp": "ja", "sp": "es", "ua": "uk", "vn": "vi", "cmn": "zh",
    "mandarin": "zh", "farsi": "fa", "castilian": "es", "burmese": "my", "flemish": "nl", "oriya": "or", "ger": "de",
}  # fmt: skip


def _read(table: str) -> dict[str, tuple[str, str]]:
    entries = (entry.partition(" ") for line in table.split("\n") for entry in line.split("|") if entry)
    names = {code: names.partition("=") for code, _, names in entries}
    return {code: (english, own or english) for code, (english, _, own) in names.items()}


LANGUAGES = _read(_TABLE)


def meant_code(text: str) -> str | None:
    """The code that is probably meant by a language's name, in English or in itself, its beginning, or a slip; None
    where there is none to suggest."""
    wanted = text.lower()
    if wanted in _SLIPS:
        return _SLIPS[wanted]
    codes = {name.lower(): code for code, names in LANGUAGES.items() for name in names}
    begun = dict.fromkeys(code for name, code in codes.items() if len(wanted) >= 3 and name.startswith(wanted))
    if wanted not in codes and len(begun) == 1:
        return next(iter(begun))
    close = get_close_matches(wanted, codes, n=1, cutoff=0.8)
    return codes[close[0]] if close else None


def is_code(text: str) -> bool:
    """Whether this can be a language's code: of two letters, one of ISO 639-1; of three, any, as there are thousands;
    with a region or a script behind it (zh-TW, zh_Hant); or private, as in x-mine."""
    first = text.replace("_", "-").split("-")[0].lower()
    return first in LANGUAGES or first == "x" or (len(first) == 3 and first.isalpha() and first not in _SLIPS)
