"""Encodings: decided on the whole file, by language, and said where they are not sound UTF-8."""

from __future__ import annotations

import pytest

from retrieval.errors import UnsupportedFile
from retrieval.parsing import parse
from retrieval.parsing.encoding import decode

SENTENCES = {
    "en": "The keeper said: “the gate isn’t open” — and left. It cost £5 or €6… nobody’s fault.",
    "fr": "Hélène, gardienne du phare, a reçu 5 € pour l’été. À Noël, elle mangea une crème brûlée.",
    "de": "Die Größe der Brücke über den Fluß wurde im Jahr 1890 für 30 £ geändert.",
    "es": "¿Dónde está el niño? El año pasado compró un camión pequeño en España.",
    "pl": "Zażółć gęślą jaźń. Wieża została zbudowana w roku 1890 przez mieszkańców miasta Łódź.",
    "cs": "Příliš žluťoučký kůň úpěl ďábelské ódy. Věž byla postavena v roce 1890.",
    "ru": "Смотритель моста сказал, что ворота закрыты. Башня построена в 1890 году.",
    "el": "Ο φύλακας της γέφυρας είπε ότι η πύλη είναι κλειστή. Ο πύργος χτίστηκε το 1890.",
    "tr": "Köprünün bekçisi kapının kapalı olduğunu söyledi. Şu ağaç çok yaşlı, ışık sönük.",
    "zh": "桥的守护人说大门已经关闭。这座塔建于一八九零年，非常高大。",
    "ja": "橋の番人は門が閉まっていると言った。塔は1890年に建てられました。",
    "ko": "다리 관리인은 문이 닫혀 있다고 말했다. 탑은 1890년에 지어졌다.",
}
ENCODINGS = {
    "cp1252": ("en", "fr", "de", "es"),
    "cp1250": ("pl", "cs"),
    "iso8859-2": ("pl",),
    "cp1251": ("ru",),
    "koi8-r": ("ru",),
    "cp866": ("ru",),
    "cp1253": ("el",),
    "cp1254": ("tr",),
    "gb18030": ("zh",),
    "cp932": ("ja",),
    "euc_jp": ("ja",),
    "iso2022_jp": ("ja",),
    "cp949": ("ko",),
} | dict.fromkeys(("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"), tuple(SENTENCES))


@pytest.mark.parametrize("repeats", [1, 40])
@pytest.mark.parametrize(
    ("encoding", "language"), [(encoding, language) for encoding, spoken in ENCODINGS.items() for language in spoken]
)
def test_every_character_is_read_back(encoding: str, language: str, repeats: int) -> None:
    text = "\n".join([SENTENCES[language]] * repeats)
    assert parse(text.encode(encoding), "a.txt").text == text


@pytest.mark.parametrize(("encoding", "language"), [("gb18030", "zh"), ("cp932", "ja"), ("koi8-r", "ru")])
def test_it_is_decided_on_the_whole_file_and_not_on_its_plain_beginning(encoding: str, language: str) -> None:
    text = "a plain line of a long log\n" * 20_000 + SENTENCES[language] + "\nand on\n" * 20_000
    assert decode(text.encode(encoding), "a.log").text == text


def test_single_bad_bytes_do_not_make_utf8_something_else() -> None:
    good = SENTENCES["fr"].encode()
    parsed = parse(good + b"\n\xff\n" + good + b" \xe9 la", "a.txt")
    assert parsed.text == f"{SENTENCES['fr']}\n\ufffd\n{SENTENCES['fr']} \ufffd la"
    assert parsed.notes == ["decoded as utf-8 with 2 doubtful bytes"]


def test_a_replacement_character_of_the_file_is_no_doubt() -> None:
    assert decode("café \ufffd".encode(), "a.txt").notes() == []


def test_the_encoding_is_said() -> None:
    assert parse(SENTENCES["en"].encode("cp1252"), "a.txt").notes == ["decoded as cp1252 with 0 doubtful bytes"]


def test_signs_within_words_are_the_letters_of_another_encoding() -> None:
    assert decode(SENTENCES["es"].encode("cp850"), "a.txt").text == SENTENCES["es"]


def test_a_few_letters_are_taken_for_western() -> None:
    text = "Nom;Rôle;Prix\nHélène;gardienne;5 €\nJosé;boulanger;7 €\n"
    assert decode(text.encode("cp1252"), "a.csv").text == text


def test_a_declaration_is_believed_unless_the_bytes_contradict_it() -> None:
    assert decode("ñandú".encode("mac_roman"), "a.html", "macintosh").text == "ñandú"
    assert decode("ñandú".encode(), "a.html", "windows-1252").text == "ñandú"
    assert decode("ñandú".encode("cp1252"), "a.html", "no such thing").text == "ñandú"


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UnsupportedFile, match=r"b\.txt .* save it as UTF-8"):
        decode(bytes(range(1, 256)) * 40, "b.txt")
    with pytest.raises(UnsupportedFile, match="claims to be utf-16-le but is not"):
        decode(b"\xff\xfe" + b"\x00\xd8" * 40, "b.txt")


def test_a_short_text_with_one_bad_byte_stays_utf8() -> None:
    decoded = decode("déjà vu".encode() + b" \xff", "a.txt")
    assert (decoded.text, decoded.doubtful) == ("déjà vu \ufffd", 1)


@pytest.mark.parametrize("label", ["base64", "rot13", "unicode_escape", "idna", "utf-7"])
def test_a_declaration_of_what_is_no_encoding_is_ignored(label: str) -> None:
    assert decode("ñandú \\x41".encode("cp1252"), "a.html", label).text == "ñandú \\x41"
