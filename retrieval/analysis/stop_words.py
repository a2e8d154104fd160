"""Words that say little by themselves, by language: bm25s' lists (NLTK's), and short ones for languages it lacks.

They serve twice: their counts tell languages apart, and a query is searched without them. The index keeps them, so
that a query of nothing else still finds what it names.
"""

from __future__ import annotations

from bm25s import stopwords as kept

from retrieval.analysis.folding import fold, unaccented

_MORE_ENGLISH = "also could how many may might much must shall since us upon whether whose would"
_MORE_GERMAN = "bereits beim dabei etwa sowie wann warum wieviel worden wurde wurden"

_LISTS: dict[str, str | tuple[str, ...]] = {
    "en": (*kept.STOPWORDS_EN_PLUS, *_MORE_ENGLISH.split()),
    "ar": "في من على إلى الى عن مع هو هي هم هذا هذه ذلك تلك التي الذي الذين ما ماذا متى أين كيف كم لماذا هل أي "
    "أو و ثم لا لم لن قد كان كانت يكون تكون كل بعض بين عند عندما حتى أن إن لكن كما أيضا غير بعد قبل حول خلال ضد دون "
    "منذ له لها لهم فيه فيها عليه عليها منها منه به بها أنه أنها وفي ومن وهو وهي حيث إذا بسبب اسم عدد",
    "ca": "de la el i a en les del els que per un una amb és no al dels se va com més o ha han què qui quan quin quina "
    "quins on perquè quant aquest aquesta ser són era",
    "cs": "a i v ve na se je že o s z ze do k ke za po pro jako ale by byl byla bylo jsou jsem si to ten ta tento není "
    "nebo od při kdo co kdy kde jak proč který která které kolik jaký jaká jaké",
    "da": kept.STOPWORDS_DANISH,
    "de": (*kept.STOPWORDS_GERMAN, *_MORE_GERMAN.split()),
    "el": "και το η ο να του της των τον την τα οι στο στη στην στον με για από που σε είναι δεν θα ένα μια ή τι ποιος "
    "ποια ποιο πότε πού πώς γιατί πόσο πόσα ήταν ως κατά",
    "es": kept.STOPWORDS_SPANISH,
    "fi": "ja on ei se että oli joka mutta ovat tai kun kuin niin myös hän sen ole olivat sekä jos vain jotka mitä "
    "mikä kuka milloin missä miten miksi kuinka mikä millä jonka",
    "fr": kept.STOPWORDS_FRENCH,
    "hi": "के में की है और से का को हैं पर इस कि जो ने एक यह वह था थी थे भी नहीं तो ही या लिए गया किया क्या कौन कब "
    "कहाँ कैसे क्यों कितने कितना कितनी किस कर हो द्वारा",
    "hu": "a az és hogy is nem egy volt meg de ez azt mint csak már el ki mi mikor hol hogyan miért mennyi melyik "
    "voltak vagy ezt még majd ha",
    "id": "yang dan di dari untuk dengan pada ini itu dalam adalah tidak ke akan oleh juga atau sebagai telah ada "
    "mereka apa siapa kapan mana bagaimana mengapa berapa",
    "it": kept.STOPWORDS_ITALIAN,
    "nl": kept.STOPWORDS_DUTCH,
    "no": kept.STOPWORDS_NORWEGIAN,
    "pl": "w i z na do się nie jest to że o od po za jak przez dla oraz a ale czy są był była było być tego tym tej "
    "ten ta co kto kiedy gdzie dlaczego który która które ile jaki jaka jakie jego jej ich",
    "pt": kept.STOPWORDS_PORTUGUESE,
    "ro": "și de în a la cu pe că nu din o un este pentru mai care fi au se sunt ce cine când unde cum cât câți câte "
    "prin sau după fost era lui",
    "ru": kept.STOPWORDS_RUSSIAN,
    "sv": kept.STOPWORDS_SWEDISH,
    "tr": kept.STOPWORDS_TURKISH,
    "zh": kept.STOPWORDS_CHINESE,
}  # fmt: skip

STOP_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(
        spelling
        for word in (words.split() if isinstance(words, str) else words)
        for spelling in (fold(word), unaccented(fold(word)))
    )
    for language, words in _LISTS.items()
}
"""language (ISO 639-1) → folded words, with their accents and without; English first, then by name"""
