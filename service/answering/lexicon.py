"""Words that the rule of support must know, by language: what joins, what denies, what weakens, what counts.

A claim may not add, drop or change an *operator* of its evidence: a negation, a hedge, a condition, a quantifier, a
comparison. The lists are closed classes and short; a language without one gets no claim attributed, only verbatim ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache


@dataclass(frozen=True)
class Lexicon:
    """One language.

    Attributes:
        function: words without content of their own; prepositions, conjunctions and auxiliaries among them.
        prepositions: word → class; two of one class can stand for each other.
        operators: word → class; operators of one class say the same.
        verbs: forms that make a sentence of a group of words, where their ending does not show it.
        synonyms: stem → the first of its group.
    """

    code: str
    function: frozenset[str]
    determiners: frozenset[str]
    prepositions: Mapping[str, str]
    pronouns: frozenset[str]
    possessives: frozenset[str]
    relatives: frozenset[str]
    conjunctions: frozenset[str]
    embedding: frozenset[str]
    auxiliaries: frozenset[str]
    copulas: frozenset[str]
    passive: frozenset[str]
    agent: frozenset[str]
    operators: Mapping[str, str]
    light: frozenset[str]
    framing: re.Pattern[str] | None
    numbers: Mapping[str, int]
    ordinals: Mapping[str, int]
    months: Mapping[str, int]
    magnitudes: Mapping[str, int]
    comma_decimal: bool
    verbs: frozenset[str] = frozenset()
    irregular: Mapping[str, str] = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)
    suffixes: tuple[str, ...] = ()

    def stem(self, word: str) -> str:
        """What the forms of a word share; synonyms share it too."""
        return _stem(self.code, word)

    def is_verb(self, word: str) -> bool:
        """Whether a word can be what a sentence says of its subject."""
        if word in self.auxiliaries or word in self.verbs or word in self.irregular:
            return True
        return self.code == "en" and len(word) > 4 and word.endswith("ed")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _classes(text: str) -> dict[str, str]:
    """``class: word word; class: …``, a multi-word operator joined by underscores."""
    return {
        word: name.strip()
        for part in text.split(";")
        for name, _, words in [part.partition(":")]
        for word in words.split()
    }


def _count(text: str, start: int = 0, step: int = 1) -> dict[str, int]:
    """Words separated by spaces, counted up; forms of one number joined by a slash."""
    return {form: start + step * i for i, forms in enumerate(text.split()) for form in forms.split("/")}


_EN_IRREGULAR = (
    "be:is/are/was/were/been/being/am have:has/had/having do:does/did/done build:built win:won lose:lost beat:beaten "
    "begin:began/begun become:became know:knew/known take:took/taken give:gave/given make:made hold:held find:found "
    "write:wrote/written go:went/gone see:saw/seen get:got/gotten come:came lead:led leave:left keep:kept "
    "bring:brought buy:bought sell:sold teach:taught think:thought say:said tell:told pay:paid lay:laid meet:met "
    "run:ran rise:rose/risen fall:fell/fallen grow:grew/grown draw:drew/drawn fly:flew/flown throw:threw/thrown "
    "choose:chose/chosen speak:spoke/spoken break:broke/broken drive:drove/driven eat:ate/eaten steal:stole/stolen "
    "wear:wore/worn swim:swam/swum sing:sang/sung drink:drank/drunk ring:rang/rung sink:sank/sunk stand:stood "
    "understand:understood send:sent spend:spent lend:lent bend:bent mean:meant feel:felt deal:dealt seek:sought "
    "fight:fought catch:caught hear:heard sit:sat show:shown shoot:shot strike:struck hide:hid/hidden bind:bound "
    "wind:wound feed:fed bleed:bled breed:bred light:lit shine:shone sleep:slept sweep:swept forget:forgot/forgotten "
    "bear:bore/born/borne tear:tore/torn swear:swore/sworn lie:lay/lain child:children man:men woman:women "
    "person:people foot:feet tooth:teeth mouse:mice life:lives leaf:leaves half:halves"
)
_EN_SYNONYMS = (
    "build construct erect; begin start commence; end finish conclude; situate locate; buy purchase acquire; "
    "big large; small little; receive get obtain; show demonstrate; use utilize utilise employ; help assist aid; "
    "near close; car automobile; movie film; start launch; choose select pick; "
    "require need; happen occur; quick fast rapid; main primary principal chief; "
    "found establish; name call; create make; live reside; die decease; defeat beat; "
    "kilometer kilometre; meter metre; center centre; color colour; percent percentage; "
    "match game; feature include comprise contain; state say; uk britain; "
    "answer reply; child kid; ask inquire; speak talk; allow permit; forbid prohibit; whole entire; total overall; "
    "teach instruct; study examine; attempt try; often frequent; remain stay; "
    "also additional; part portion; area region; town city; author writer; doctor physician; "
    "lawyer attorney; injure hurt wound; illness disease; wealthy rich; prove show; aim goal"
)
_EN_VERBS = (
    "includes include plays play lives live works work means mean uses use makes make takes take gives give goes go "
    "comes come holds hold stands stand costs cost weighs weigh runs run lies says say states contains contain "
    "consists consist refers refer describes describe covers cover needs need requires require provides provide "
    "serves serve offers offer belongs belong remains remain becomes become shows show helps help allows allow causes "
    "cause leads lead produces produce exists exist depends depend measures measure beats beat wins win bark barks "
    "set put cut hit hurt let shut cast spread read led built has have had won said grew fell opens open closes close "
    "begins begin ends end follows follow carries carry owns own rises rise flows flow forms form occurs occur applies apply "
    "represents represent defines define supports support protects protect eats eat sells sell reaches reach"
)

_EN = Lexicon(
    code="en",
    function=_words(
        "a an the this that these those it its he him his she her hers they them their theirs we us our you your i me my "
        "who whom whose which what where when why how there here as is are was were be been being am has have had having "
        "do does did doing and but so then thus therefore hence because since while whereas although though yet "
        "however moreover furthermore additionally also too very such own same other itself himself herself themselves "
        "of in on at by for with from to into onto upon about against between through during before after above below "
        "under over within without across along among around behind beside besides beyond despite inside like near "
        "off out outside per past through throughout toward towards until up via than if or nor not s both either even "
        "just still already soon later again ago well rather quite yes following overall finally firstly secondly "
        "meanwhile instead indeed specifically particularly currently eventually subsequently respectively thereby "
        "one ones etc e.g i.e known called named regarding concerning including being located situated"
    ),
    determiners=_words("a an the this that these those its his her their our your my another"),
    prepositions=_classes(
        "of: of; loc: in on at within inside near; by: by; for: for; with: with; from: from; to: to into onto toward towards; "
        "about: about regarding concerning; against: against; between: between among; through: through throughout via across "
        "along; during: during; above: above; below: below; under: under beneath; over: over; without: without; "
        "behind: behind; beyond: beyond; despite: despite; like: like unlike; outside: outside; after: after following; "
        "before: before; until: until; since: since; per: per; as: as; upon: upon; off: off; out: out; than: than"
    ),
    pronouns=_words("it he she they this these that those him them its his her their"),
    possessives=_words("s"),
    relatives=_words("who whom whose which that where when"),
    conjunctions=_words("and but while whereas yet so"),
    embedding=_words("that whether"),
    auxiliaries=_words(
        "is are was were be been being am has have had does did do can could may might must shall should will would"
    ),
    copulas=_words("is are was were be"),
    passive=_words("is are was were be been being get got"),
    agent=_words("by"),
    operators=_classes(
        "neg: not never no none nobody nothing nowhere neither nor without cannot n't hardly barely scarcely rarely seldom "
        "fail failed fails failing lacks lacked lack unable impossible refused refuse refuses denied deny denies non "
        "false untrue myth incorrect wrongly falsely; "
        "may: may might could perhaps possibly maybe possible potentially; "
        "seem: seem seems seemed appears apparently seemingly suggests suggest suggested; "
        "likely: likely probably presumably; "
        "alleged: allegedly alleged reportedly reported supposedly supposed claimed claims claim rumoured rumored purportedly "
        "so-called believed believes believe thought argued argues insists insisted; "
        "plan: planned plans intended intends proposed proposes hoped hopes wants wanted tried attempted expected; "
        "should: should ought; must: must; would: would; will: will shall; can: can; "
        "if: if unless whether; "
        "only: only solely merely exclusively; except: except excluding apart; "
        "all: all every each everyone everybody everything always entirely completely; "
        "some: some sometimes someone certain partly partially; most: most mostly usually generally majority typically; "
        "many: many numerous; few: few fewer; several: several; any: any; half: half; "
        "almost: almost nearly virtually; "
        "more: more greater higher larger bigger longer over exceeding exceeded; "
        "less: less fewer lower smaller shorter; than: than; "
        "least: least minimum; max: maximum; "
        "former: former formerly ex previously once; vice: vice deputy acting assistant; "
        "or: or either; fake: fake false would-be pseudo anti future"
    ),
    light=_words(
        "document documents passage text article paragraph context excerpt information provide provides provided mention "
        "mentioned mentions state states stated according describe described describes note noted notes indicate indicates "
        "refer referred refers type kind"
    ),
    framing=re.compile(
        r"\s*(?:(?:yes|sure|certainly)[,.!]\s+)?(?:(?:according to|based on|as (?:stated|mentioned|described|noted) in|in|from) "
        r"(?:the )?(?:provided |given |above )?(?:documents?|passages?|texts?|context|article|paragraph|excerpt|sources?|information)"
        r"(?: (?:number )?\[?\d+\]?)?(?: provided| given)?,?\s+|(?:the )?(?:provided |given )?(?:documents?|passage|text|context|article|"
        r"paragraph)(?: \[?\d+\]?)? (?:states?|says?|mentions?|explains?|describes?|notes?|indicates?|tells? us) (?:that )?|"
        r"the answer is(?: that)?:? )?",
        re.IGNORECASE,
    ),
    numbers=_count(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen"
    )
    | _count("twenty thirty forty fifty sixty seventy eighty ninety", 20, 10)
    | {"dozen": 12, "twice": 2},
    ordinals=_count(
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
        "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth",
        1,
    ),
    months=_count(
        "january/jan february/feb march/mar april/apr may june/jun july/jul august/aug september/sep/sept "
        "october/oct november/nov december/dec",
        1,
    ),
    magnitudes={"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "bn": 10**9},
    comma_decimal=False,
    verbs=_words(_EN_VERBS),
    irregular={
        form: base
        for entry in _EN_IRREGULAR.split()
        for base, _, forms in [entry.partition(":")]
        for form in forms.split("/")
    },
    synonyms={word: group.split()[0] for group in reversed(_EN_SYNONYMS.split(";")) for word in group.split()},
)

_DE = Lexicon(
    code="de",
    function=_words(
        "der die das den dem des ein eine einen einem einer eines dieser diese dieses diesen diesem dieser jener jene es er sie "
        "ihn ihm ihr ihre ihren ihrem ihrer ihres sein seine seinen seinem seiner seines wir uns unser ich mich mir du man wer was wo wann "
        "warum wie welche welcher welches da dort hier als ist sind war waren sein gewesen wird werden wurde wurden worden geworden hat haben hatte "
        "hatten und aber so dann also daher deshalb weil denn während obwohl doch jedoch außerdem auch sehr solche selbst sich "
        "von vom in im ins an am auf aufs bei beim für mit aus zu zum zur nach über unter vor hinter neben zwischen durch gegen ohne um bis seit "
        "wegen trotz innerhalb außerhalb laut dass daß ob oder wenn noch schon bereits wieder immer gut ja damit dabei dazu davon "
        "zurzeit schließlich heute"
    ),
    determiners=_words(
        "der die das den dem des ein eine einen einem einer eines dieser diese dieses diesen diesem seine ihre sein ihr"
    ),
    prepositions=_classes(
        "of: von vom des; loc: in im ins an am auf bei beim innerhalb; durch: durch; für: für; mit: mit; aus: aus; to: zu zum zur nach; "
        "über: über; unter: unter; vor: vor; hinter: hinter; zwischen: zwischen; gegen: gegen; ohne: ohne; um: um; bis: bis; seit: seit; als: als"
    ),
    pronouns=_words("es er sie dieser diese dieses ihn ihm ihr ihre seine sein"),
    possessives=frozenset(),
    relatives=_words("welche welcher welches"),
    conjunctions=_words("und aber während doch sondern"),
    embedding=_words("dass daß ob"),
    auxiliaries=_words(
        "ist sind war waren wird werden wurde wurden hat haben hatte hatten kann konnte können konnten muss musste soll sollte darf will wollte gibt gab"
    ),
    copulas=_words("ist sind war waren"),
    passive=_words("wird werden wurde wurden worden ist sind war waren"),
    agent=_words("von vom durch"),
    operators=_classes(
        "neg: nicht kein keine keinen keinem keiner keines nie niemals niemand nichts weder noch ohne kaum selten unmöglich falsch; "
        "may: vielleicht möglicherweise könnte könnten eventuell möglich; likely: wahrscheinlich vermutlich wohl; "
        "seem: scheint schien anscheinend; alleged: angeblich behauptet behauptete soll sollen glaubt glaubte; "
        "should: sollte sollten; must: muss müssen musste mussten; would: würde würden; can: kann können; if: wenn falls sofern ob; "
        "only: nur lediglich ausschließlich; except: außer ausgenommen; all: alle allen aller alles jeder jede jedes jeden immer; "
        "some: einige einigen manche mancher teilweise; most: meisten meist meistens; many: viele vielen; few: wenige wenig weniger; "
        "mehrere: mehrere mehreren; half: halb hälfte; almost: fast beinahe nahezu; more: mehr größer höher länger; "
        "less: kleiner niedriger kürzer; least: mindestens; max: höchstens maximal; former: ehemalige ehemaliger ehemaligen früher frühere; or: oder"
    ),
    light=_words("dokument dokumente text abschnitt laut information informationen"),
    framing=re.compile(
        r"\s*(?:(?:ja),\s+)?(?:(?:laut|gemäß|nach|im|in) (?:de[mnr] )?(?:dokument(?:en)?|text|abschnitt)(?: \d+)?,?\s+)?",
        re.IGNORECASE,
    ),
    numbers=_count(
        "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
        "achtzehn neunzehn"
    )
    | _count("zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig", 20, 10),
    ordinals=_count(
        "erste/ersten/erster/erstes zweite/zweiten/zweiter/zweites dritte/dritten/dritter/drittes vierte/vierten fünfte/fünften "
        "sechste/sechsten siebte/siebten achte/achten neunte/neunten zehnte/zehnten",
        1,
    ),
    months=_count(
        "januar/jan februar/feb märz april/apr mai juni/jun juli/jul august/aug september/sep oktober/okt november/nov "
        "dezember/dez",
        1,
    ),
    magnitudes={
        "hundert": 100,
        "tausend": 1000,
        "million": 10**6,
        "millionen": 10**6,
        "mio": 10**6,
        "milliarde": 10**9,
        "milliarden": 10**9,
        "mrd": 10**9,
        "billion": 10**12,
        "billionen": 10**12,
    },
    comma_decimal=True,
    suffixes=("ern", "em", "en", "er", "es", "e", "n", "s"),
)

_ES = Lexicon(
    code="es",
    function=_words(
        "el la los las lo un una unos unas este esta estos estas ese esa eso esto aquel aquella su sus le les se él ella ellos ellas nos yo tú "
        "que quien quién cual cuál cuales donde dónde cuando cuándo como cómo es son era eran fue fueron ser sido siendo está están estaba "
        "ha han había habían hay y e pero así entonces porque mientras aunque sin también muy mismo misma otro otra de del en a al por para con desde hacia "
        "hasta sobre entre contra durante según tras ante bajo o u si no ya más aún sí además finalmente"
    ),
    determiners=_words("el la los las lo un una unos unas este esta estos estas su sus"),
    prepositions=_classes(
        "of: de del; loc: en; to: a al hacia; by: por; for: para; with: con; from: desde; until: hasta; sobre: sobre; entre: entre; "
        "contra: contra; durante: durante; sin: sin; tras: tras; bajo: bajo; como: como"
    ),
    pronouns=_words("él ella ellos ellas esto este esta su sus"),
    possessives=frozenset(),
    relatives=_words("que quien cual donde"),
    conjunctions=_words("y e pero mientras"),
    embedding=_words("que si"),
    auxiliaries=_words(
        "es son era eran fue fueron está están estaba ha han había habían hay tiene tienen tenía tuvo puede pueden debe deben"
    ),
    copulas=_words("es son era eran fue fueron"),
    passive=_words("es son era eran fue fueron sido ser"),
    agent=_words("por"),
    operators=_classes(
        "neg: no nunca jamás nadie nada ningún ninguno ninguna tampoco ni sin apenas imposible falso; may: quizás quizá tal_vez podría podrían "
        "posiblemente posible; likely: probablemente; seem: parece parecía; alleged: supuestamente presuntamente; should: debería deberían; "
        "must: debe deben; can: puede pueden; if: si salvo; only: solo sólo solamente únicamente; except: excepto; all: todo toda todos todas cada siempre; "
        "some: algunos algunas algún alguna; most: mayoría; many: muchos muchas; few: pocos pocas; several: varios varias; half: mitad medio; "
        "almost: casi; more: más mayor mayores; less: menos menor menores; former: antiguo antigua ex; or: o u"
    ),
    light=_words("documento documentos texto pasaje información"),
    framing=re.compile(
        r"\s*(?:sí,\s+)?(?:(?:según|de acuerdo con|en) (?:el |los )?(?:documentos?|textos?|pasajes?)(?: \d+)?,?\s+)?",
        re.IGNORECASE,
    ),
    numbers=_count(
        "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete dieciocho "
        "diecinueve veinte"
    )
    | _count("treinta cuarenta cincuenta sesenta setenta ochenta noventa", 30, 10),
    ordinals=_count(
        "primero/primera/primer segundo/segunda tercero/tercera/tercer cuarto/cuarta quinto/quinta sexto/sexta séptimo/séptima "
        "octavo/octava noveno/novena décimo/décima",
        1,
    ),
    months=_count(
        "enero febrero marzo abril mayo junio julio agosto septiembre/setiembre octubre noviembre diciembre", 1
    ),
    magnitudes={"cien": 100, "mil": 1000, "millón": 10**6, "millones": 10**6},
    comma_decimal=True,
    suffixes=("aron", "ieron", "ando", "iendo", "ado", "ida", "ido", "ada", "os", "as", "es", "a", "o", "e", "s", "ó"),
)

_FR = Lexicon(
    code="fr",
    function=_words(
        "le la les l un une des du de d ce cet cette ces c il elle ils elles on nous vous je tu se s son sa ses leur leurs qui que qu quoi dont où "
        "quand comment pourquoi est sont était étaient fut furent être été étant a ont avait avaient eu et mais donc alors ainsi car parce puisque "
        "pendant tandis bien aussi très même autre en dans à au aux par pour avec depuis vers jusque sur entre contre durant selon "
        "après avant sous chez ou si ne y déjà encore oui enfin"
    ),
    determiners=_words("le la les l un une des du ce cet cette ces son sa ses leur leurs"),
    prepositions=_classes(
        "of: de du d des; loc: en dans à au aux chez; by: par; for: pour; with: avec; from: depuis; to: vers; sur: sur; entre: entre; contre: contre; "
        "durant: durant pendant; after: après; before: avant; sous: sous; sans: sans"
    ),
    pronouns=_words("il elle ils elles ce cela ceci son sa ses leur leurs"),
    possessives=frozenset(),
    relatives=_words("qui que qu dont où"),
    conjunctions=_words("et mais tandis"),
    embedding=_words("que qu si"),
    auxiliaries=_words("est sont était étaient fut furent a ont avait avaient peut peuvent doit doivent"),
    copulas=_words("est sont était étaient fut"),
    passive=_words("est sont était étaient fut furent été être"),
    agent=_words("par"),
    operators=_classes(
        "neg: pas jamais aucun aucune rien personne ni sans guère nul nulle impossible faux; may: peut-être pourrait pourraient possible possiblement; "
        "likely: probablement; seem: semble semblait; alleged: prétendument; should: devrait devraient; must: doit doivent; can: peut peuvent; if: si; "
        "only: seulement uniquement; except: sauf excepté; all: tout toute tous toutes chaque toujours; some: quelques certains certaines; "
        "most: plupart; many: beaucoup nombreux nombreuses; few: peu; several: plusieurs; half: moitié demi; almost: presque; "
        "more: plus supérieur supérieure; less: moins inférieur inférieure; former: ancien ancienne ex; or: ou"
    ),
    light=_words("document documents texte passage information informations"),
    framing=re.compile(
        r"\s*(?:oui,\s+)?(?:(?:selon|d'après|dans) (?:le |les )?(?:documents?|textes?|passages?)(?: \d+)?,?\s+)?",
        re.IGNORECASE,
    ),
    numbers=_count("zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize")
    | _count("vingt trente quarante cinquante soixante", 20, 10),
    ordinals=_count(
        "premier/première deuxième troisième quatrième cinquième sixième septième huitième neuvième dixième", 1
    ),
    months=_count("janvier février mars avril mai juin juillet août septembre octobre novembre décembre", 1),
    magnitudes={
        "cent": 100,
        "cents": 100,
        "mille": 1000,
        "million": 10**6,
        "millions": 10**6,
        "milliard": 10**9,
        "milliards": 10**9,
    },
    comma_decimal=True,
    suffixes=("èrent", "aient", "ement", "ées", "ée", "és", "er", "es", "ent", "e", "s", "é"),
)

LEXICONS = {lexicon.code: lexicon for lexicon in (_EN, _DE, _ES, _FR)}
_WORD = re.compile(r"[^\W\d_]+")


def lexicon_of(text: str) -> Lexicon | None:
    """The language whose function words a text has most of, or None where it has none of any."""
    words = [word.casefold() for word in _WORD.findall(text[:4000])]
    counts = {code: sum(word in lexicon.function for word in words) for code, lexicon in LEXICONS.items()}
    best = max(counts, key=lambda code: counts[code])
    return LEXICONS[best] if counts[best] else None


@lru_cache(maxsize=100_000)
def _stem(code: str, word: str) -> str:
    lexicon = LEXICONS[code]
    if code == "en":
        base = lexicon.irregular.get(word, word)
        stem = _english(base) if base == word else base
        for form in (base, stem, stem + "e"):
            if form in lexicon.synonyms:
                return _bare(lexicon.synonyms[form])
        return _bare(stem)
    for suffix in lexicon.suffixes:
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            return word[: -len(suffix)]
    return word


def _bare(stem: str) -> str:
    return stem[:-1] if len(stem) > 3 and stem.endswith("e") else stem


def _english(word: str) -> str:
    """Plural, third person, past and -ing taken off (Harman's S-stemmer and Porter's step 1b); American spelling."""
    if len(word) > 5:
        word = re.sub(r"is(e[ds]?|ing|ation)$", r"iz\1", word.replace("our", "or"))
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-2] if word.endswith(("sses", "shes", "ches", "xes", "zes")) else word[:-1]
    if len(word) > 4 and word.endswith("ied"):
        return word[:-3] + "y"
    for suffix in ("ing", "ed"):
        body = word[: -len(suffix)]
        if word.endswith(suffix) and len(body) >= 3 and re.search(r"[aeiouy]", body):
            doubled = len(body) > 3 and body[-1] == body[-2] and body[-1] not in "lsz"
            return body[:-1] if doubled else body
    return word
