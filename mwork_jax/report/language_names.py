"""What languages are called, in English and in themselves."""

from __future__ import annotations

_NAMES = {
    "ar": ("Arabic", "العربية"),
    "bn": ("Bengali", "বাংলা"),
    "cs": ("Czech", "čeština"),
    "de": ("German", "Deutsch"),
    "el": ("Greek", "Ελληνικά"),
    "en": ("English", "English"),
    "es": ("Spanish", "español"),
    "fa": ("Persian", "فارسی"),
    "fr": ("French", "français"),
    "he": ("Hebrew", "עברית"),
    "hi": ("Hindi", "हिन्दी"),
    "id": ("Indonesian", "Bahasa Indonesia"),
    "it": ("Italian", "italiano"),
    "ja": ("Japanese", "日本語"),
    "ko": ("Korean", "한국어"),
    "nl": ("Dutch", "Nederlands"),
    "pl": ("Polish", "polski"),
    "pt": ("Portuguese", "português"),
    "ru": ("Russian", "русский"),
    "sw": ("Swahili", "Kiswahili"),
    "ta": ("Tamil", "தமிழ்"),
    "te": ("Telugu", "తెలుగు"),
    "th": ("Thai", "ไทย"),
    "tr": ("Turkish", "Türkçe"),
    "uk": ("Ukrainian", "українська"),
    "ur": ("Urdu", "اردو"),
    "vi": ("Vietnamese", "Tiếng Việt"),
    "zh": ("Chinese", "中文"),
}


NAMES = {code: english for code, (english, _) in _NAMES.items()}


def name_of(language: str) -> str:
    """The English name; the code itself where none is known."""
    return _NAMES.get(language, (language, language))[0]


def direction_of(language: str) -> str:
    """How the language is written, as HTML says it: "rtl" or "ltr"."""
    return "rtl" if language.split("-")[0] in ("ar", "fa", "he", "ps", "sd", "ug", "ur", "yi") else "ltr"


def full_name(language: str) -> str:
    """Both names, as in `Thai · ไทย`; one where they are the same or unknown. The own name is isolated, so that one
    written from right to left leaves what stands around it in place."""
    english, own = _NAMES.get(language, (language, language))
    return english if english == own else f"{english} · \u2068{own}\u2069"
