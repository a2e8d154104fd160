"""Whether an answer says that it has none.

Models refuse in words of their own, whatever they were told to say. An answer is a refusal if one of its sentences says
that the documents, or the speaker, do not know, and no other sentence says anything else: what is said about some third
thing ("The law does not say that …") is content, and so is all that follows a "but".

The words are English, German, Spanish, French and Chinese.
"""

from __future__ import annotations

import re

from retrieval.parsing.sentences import sentences

LONGEST = 800
"""Characters; no refusal is longer."""


def is_refusal(text: str) -> bool:
    """Whether `text` refuses to answer and gives no answer beside it. Empty text is none: it says nothing."""
    if len(text) > LONGEST:
        return False
    refused = False
    for clause in _clauses(text):
        if any(pattern.search(clause) for pattern in _REFUSING) and not _REPORTED.search(clause):
            refused = True
        elif not any(pattern.fullmatch(clause) for pattern in _IDLE):
            return False
    return refused


def _clauses(text: str) -> list[str]:
    """Sentences, cut before each "but", without quotation marks and markers around them."""
    parts = [part for start, end in sentences(text) for part in _TURN.split(text[start:end])]
    bare = (_DECORATION.sub("", _MARKERS.sub("", part).replace("\u2019", "'")) for part in parts)
    return [" ".join(part.split()) for part in bare if part]


_MARKERS = re.compile(r"\[[^\[\]]{1,12}\]")
_DECORATION = re.compile(r"^[\W_]+|[^\w)]+$|^(?:answer|antwort|respuesta|réponse|答案|回答)\s*[:：]\s*", re.IGNORECASE)
_TURN = re.compile(
    r"[,;.\u2013\u2014]?\s+(?:but|however|though|although|nevertheless|still|yet|aber|jedoch|allerdings|doch|pero|sin embargo|"
    r"aunque|mais|cependant|toutefois)\b[,:]?\s*|[,，;；。]?\s*(?:但是|不过|然而|但)[,，]?",
    re.IGNORECASE,
)
_REPORTED = re.compile(r",\s(?:he |she |they )?(?:said|says|wrote|writes|replied|answered|asked|thought)\b", re.IGNORECASE)


def _compiled(*patterns: str) -> list[re.Pattern[str]]:
    return [re.compile(pattern, re.IGNORECASE) for pattern in patterns]


def _any(*words: str) -> str:
    return f"(?:{'|'.join(words)})"


# English

_SOURCE = (
    r"(?:(?:the|these|those|this|any of the|either of the|all of the|all|your|my|both|none of the|neither of the|no) )?"
    r"(?:(?:given|provided|available|above|supplied|retrieved|following|relevant|search|context|two|three|text) )*"
    r"(?:documents?|passages?|texts?|contexts?|sources?|excerpts?|articles?|evidence|information|data|content|materials?|"
    r"paragraphs?|results?|answers?|files?|snippets?|(?:passage|document|text|source) \d+(?:(?:,| and|, and) \d+)*)"
    r"(?: (?:given|provided|above|here|supplied|available|themselves|itself|in the (?:documents?|passages?|texts?|context)|"
    r"you (?:gave|provided|have provided|shared)(?: me)?))*"
)
_THEY = _any(_SOURCE, "they", "it")
_NOT = r"(?:do not|does not|don't|doesn't|did not|didn't|cannot|can't|could not|couldn't|never)(?: \w+ly| even| seem to| appear to| actually)*"
_TELL = _any("say", "mention", "specify", "state", "indicate", "tell", "explain", "describe", "discuss", "address",
             "reveal", "disclose", "clarify", "name", "list", "answer", "cover", "refer to", "speak of", "talk about")
_HOLD = _any("contain", "provide", "give", "include", "have", "offer", "hold", "supply", "present", "show")
_KNOWLEDGE = (
    r"(?:(?:an?|the|any|enough|sufficient|further|more|direct|specific|explicit|clear|relevant|such|that|this|detailed|"
    r"necessary|adequate|needed|required|definitive|exact|precise|concrete|additional|other) )*"
    r"(?:information|info|answers?|details?|mentions?|data|evidence|context|references?|statements?|indications?|"
    r"explanations?|descriptions?|specifics|clues?)\b"
)
_ASKED = r"(?:who|whom|whose|what|when|where|which|why|how|whether|if|about|anything|it|this|that question)\b"
_SEEN = _any("mentioned", "stated", "specified", "given", "provided", "said", "found", "described", "discussed",
             "addressed", "indicated", "included", "contained", "explained", "listed", "named", "answered", "covered",
             "disclosed", "determined", "known", "available", "clear", "present", "documented", "recorded", "explicit(?:ly)? \\w+")

_ENGLISH = _compiled(
    rf"^(?:[\w ,']{{0,80}}, )?{_THEY} {_NOT} {_TELL}(?! that\b)\b",
    rf"^(?:[\w ,']{{0,80}}, )?{_THEY} {_NOT} {_HOLD} (?:{_KNOWLEDGE}|{_ASKED})",
    rf"^(?:[\w ,']{{0,80}}, )?(?:none|neither) of {_SOURCE} {_any(_TELL + 's?', _HOLD + 's?')}\b",
    rf"^(?:[\w ,']{{0,80}}, )?no {_SOURCE} {_any(_TELL + 's?', _HOLD + 's?')}\b",
    rf"^(?:[\w ,']{{0,80}}, )?{_THEY} (?:has|have|contains?|gives?|provides?|includes?|offers?|makes?|say|says) (?:no|nothing)\b(?: {_KNOWLEDGE}| about| on| of| to say|$)",
    rf"^(?:[\w ,']{{0,80}}, )?there (?:is|are|was|were) (?:no|not any|not enough|insufficient|nothing)(?: {_KNOWLEDGE}(?! that\b)| in {_SOURCE})",
    rf"^(?:[\w ,']{{0,80}}, )?there (?:isn't|aren't|wasn't|weren't) (?:any|enough)? ?{_KNOWLEDGE}",
    rf"^(?:no|not enough|insufficient) {_KNOWLEDGE}(?: (?:is|are|was|were) (?:\w+ )?{_SEEN}| about| on| regarding| in {_SOURCE}|$)",
    rf"\b(?:is|are|was|were) (?:not|never)(?: \w+ly)? {_SEEN}(?: \w+)? (?:in|by|from|within|anywhere in) {_SOURCE}",
    rf"\b(?:isn't|aren't|wasn't|weren't|cannot be|can't be|could not be|couldn't be) {_SEEN}(?: \w+)? (?:in|by|from|within) {_SOURCE}",
    rf"^(?:the (?:answer|information|question|requested \w+)[\w ,'\"]{{0,120}}|it|this|that) (?:is not|isn't|are not|was not|wasn't|cannot be|can't be|could not be)(?: \w+ly)? {_SEEN}",
    rf"^(?:it is|it's) (?:unclear|unknown|impossible|not possible|unspecified|not clear)(?:$| to (?:determine|say|tell|know|answer)\b|"
    rf".{{0,160}} (?:from|in|by|based on) {_SOURCE})",
    rf"^(?:not|never)(?: \w+ly)? {_SEEN}",
    r"^(?:unknown|unspecified|unanswerable|n/a|na|no answer|none given|i do not know|no idea)$",
    r"^(?:[\w ,']{0,80}, )?i(?:'m| am)? (?:do not|don't|cannot|can't|could not|couldn't|am unable to|unable to|am not able to|"
    r"not able to|was unable to|will not|won't|am not|'m not)(?: \w+ly)? (?:know|answer|find|determine|say|tell|provide|"
    r"have|see|give|sure|aware|certain|confirm|identify|locate|be able to|assist|help)\b(?! (?:him|her|them|you|me|us|myself)\b)",
    r"^(?:[\w ,']{0,80}, )?(?:you )?(?:cannot|can't) (?:be )?(?:answer|determine|say|tell|know)(?:ed|d|n)?\b",
)
_ENGLISH_IDLE = _compiled(
    r"(?:i(?:'m| am) )?(?:sorry|afraid|i apologi[sz]e)\b(?: for [\w ]{1,40})?",
    r"unfortunately",
    rf"(?:please|if you|feel free|let me know|you (?:may|might|can|could)|could you|would you)\b.{{0,200}}",
    rf"(?:therefore|thus|so|hence|as such|for this reason)",
    rf"{_THEY} (?:only|just|merely|simply|instead|mainly|primarily) \w+\b.{{0,240}}",
    rf"(?:based on|according to|from) {_SOURCE}",
)

# German

_QUELLE = (
    r"(?:(?:die|den|der|das|dem|diese[nmr]?|ihre[nm]?|alle|keine[sr]?|keines der|keiner der|im|in) )*(?:(?:vorliegenden?|gegebenen?|"
    r"bereitgestellten?|obigen?|genannten?|vorhandenen?) )*(?:dokument(?:e|en|s)?|text(?:e|en|s)?|passage[n]?|textstelle[n]?|"
    r"abschnitt(?:e|en|s)?|unterlagen|quellen?|kontext(?:es)?|auszug|auszüge[n]?|informationen|material(?:ien)?)"
)
_GERMAN = _compiled(
    rf"^{_QUELLE} (?:sagen|sagt|nennen|nennt|erwähnen|erwähnt|enthalten|enthält|geben|gibt|machen|macht|beantworten|"
    rf"beantwortet|beschreiben|beschreibt|liefern|liefert|bieten|bietet|äußern|verraten|verrät)\b(?!.{{0,40}}\bdass\b).{{0,160}}"
    rf"\b(?:nicht|nichts|keine?[nrs]?)\b",
    rf"\b(?:steht|stehen|findet sich|finden sich|geht|gehen|ist|sind|wird|werden|gibt es|lässt sich)\b.{{0,120}}"
    rf"\b(?:nicht|nichts|keine?[nr]?)\b.{{0,80}}(?:{_QUELLE}|hervor|entnehmen)",
    rf"\b(?:in|aus|laut|von) {_QUELLE} .{{0,120}}\b(?:nicht|nichts|keine?[nr]?)\b",
    r"^(?:dazu|darüber|hierzu|hierüber) .{0,60}\b(?:nicht|nichts|keine?[nr]?)\b",
    r"^(?:es gibt|es liegen|mir liegen|ich habe|es sind) (?:leider |dazu |darüber |hierzu |hier )*(?:keine|nicht genügend|nicht genug) "
    r"(?:\w+ )?(?:informationen?|angaben?|hinweise?|antwort|details|daten)",
    r"^(?:leider )?(?:ich )?(?:kann|weiß|könnte) (?:ich )?(?:leider |es |das |dies |diese frage |die frage |dazu |darauf |darüber )*"
    r"(?:nicht|nichts|keine)\b",
    r"^(?:die|diese) (?:frage|antwort|information) .{0,60}\bnicht\b.{0,80}(?:beantwort|ersichtlich|enthalten|bekannt|angegeben|genannt)",
    r"^(?:keine (?:angaben?|informationen?|antwort)|nicht (?:angegeben|bekannt|erwähnt|genannt|ersichtlich)|unbekannt)\b",
)
_GERMAN_IDLE = _compiled(r"(?:leider|es tut mir leid|entschuldigung|tut mir leid)", r"(?:bitte|wenn sie|falls sie)\b.{0,200}")

# Spanish

_FUENTE = (
    r"(?:(?:en|de|del|según|los|las|el|la|este|estos|esta|estas|ninguno de los|ningún|ninguna de las) )*(?:documentos?|textos?|pasajes?|"
    r"fragmentos?|contextos?|fuentes?|artículos?|información|materiales?)(?: (?:proporcionad|dad|disponible|anterior|facilitad)\w*)*"
)
_SPANISH = _compiled(
    rf"^{_FUENTE} no (?:lo |la |se |nos )*(?:dicen?|mencionan?|especifican?|indican?|responden?|explican?|describen?|aclaran?|"
    rf"detallan?|precisan?|revelan?|nombran?)\b(?! que\b)",
    rf"^{_FUENTE} no (?:contienen?|proporcionan?|dan?|ofrecen?|incluyen?|tienen?|aportan?) .{{0,40}}(?:información|respuestas?|detalles?|datos?|mención)",
    rf"^{_FUENTE} no (?:contienen?|dan?|dicen?) nada",
    rf"\bno (?:se |está |es |aparece |figura |consta )(?:\w+ )?(?:menciona|indica|especifica|dice|encuentra|explica|describe|"
    rf"precisa|mencionad[oa]|especificad[oa]|indicad[oa]|en)?\b.{{0,80}}{_FUENTE}",
    r"^no (?:hay|existe|tengo|dispongo de|se (?:proporciona|ofrece|da|encuentra)) (?:\w+ )?(?:suficiente )?(?:información|respuesta|datos|detalles|mención)",
    r"^(?:lo siento, )?(?:yo )?no (?:lo sé|sé|puedo (?:responder|contestar|determinar|decir|encontrar)|se (?:sabe|puede (?:determinar|responder|saber|contestar)|"
    r"(?:menciona|especifica|indica|dice)))\b",
    r"^(?:la respuesta|esta pregunta|la información) no (?:se |está |es |puede )",
    r"^(?:desconocid[oa]|sin respuesta|no especificad[oa]|no mencionad[oa])$",
)
_SPANISH_IDLE = _compiled(r"(?:lo siento|lamentablemente|desafortunadamente)", r"(?:por favor|si (?:usted|tiene|necesita|desea))\b.{0,200}")

# French

_DOC = (
    r"(?:(?:dans|de|des|du|selon|les|le|la|l'|ce|cet|ces|aucun des|aucun|aucune) ?)*(?:documents?|textes?|passages?|extraits?|contextes?|"
    r"sources?|articles?|informations?|contenus?)(?: (?:fourni|donné|disponible|ci-dessus|précédent)\w*)*"
)
_FRENCH = _compiled(
    rf"^{_DOC} n(?:e |')(?:le |la |l'|en |nous |y )*(?:dit|disent|mentionnent?|précisent?|indiquent?|répond(?:ent)?|expliquent?|"
    rf"décri(?:t|vent)|spécifient?|révèlent?|parlent?)\b(?:(?! que\b).){{0,60}}\b(?:pas|rien|aucune?|jamais)\b(?! que\b)",
    rf"^{_DOC} n(?:e |')(?:contien(?:t|nent)|fournit|fournissent|donnent?|offrent?|apportent?|a|ont|comportent?|permet(?:tent)?) "
    rf"(?:pas|rien|aucune?)\b",
    rf"\bn'(?:est|a|ont|était|sont|y est)\b.{{0,20}}\bpas\b.{{0,40}}\b(?:mentionné|précisé|indiqué|donné|fourni|dit|spécifié|trouvé)\w*",
    r"^il n'y a (?:pas|aucune?|rien) (?:assez |suffisamment )?(?:d'|de )?(?:information|réponse|détail|mention|donnée|indication)",
    r"^(?:désolé, )?je ne (?:sais|peux|dispose|trouve|connais) (?:pas|d'aucune)\b",
    r"^je n'ai (?:pas|aucune)\b.{0,40}(?:information|réponse|donnée)",
    r"^(?:aucune (?:information|réponse|indication|mention)|impossible (?:de|à) (?:répondre|déterminer|dire|savoir)|non (?:précisé|mentionné|spécifié|indiqué)|inconnu)",
    r"^on ne (?:sait|peut) pas\b",
)
_FRENCH_IDLE = _compiled(r"(?:désolée?|malheureusement|je suis désolée?)", r"(?:veuillez|si vous|s'il vous plaît)\b.{0,200}")

# Chinese

_WEN = (
    r"(?:根据|在|从|依据)?(?:所|以上|上述|这些|该|此|本|给定的?|提供的?|给出的?|现有的?|已知的?|您|你|我|相关)*(?:文档|文件|资料|文中|文章|材料|上文|段落|原文|文本|"
    r"信息|内容|上下文|参考资料|片段|文献)(?:中|里|内|本身|都|均|[,，]|并)*"
)
_SORRY = r"(?:(?:很|非常)?(?:抱歉|对不起|遗憾)[,，]?)?"
_CHINESE = _compiled(
    rf"^{_SORRY}{_WEN}(?:没有|没|未|并未|并没有|未曾|不|无)(?:明确|具体|直接|有|任何|足够的?|相关的?)*(?:提到|提及|说明|说|给出|提供|包含|回答|指出|涉及|"
    rf"描述|介绍|列出|记载|解释|信息|内容|答案|足够)(?!.{{0,4}}(?:不得|必须|可以|应当))",
    rf"^{_SORRY}{_WEN}.{{0,12}}(?:无法|不能)(?:回答|确定|得知|判断|找到|获得|知道)",
    r"^(?:抱歉|对不起|很抱歉|不好意思)?[,，]?(?:我|这个问题|该问题|问题)?(?:不知道|无法(?:回答|确定|得知|判断|找到|提供)|不清楚|不能(?:回答|确定)|不确定|没有(?:相关|足够的?)?(?:信息|答案))",
    r"^(?:未|没有|没)(?:明确|具体)?(?:提及|提到|说明|提供|指出|给出)",
    r"(?:没有|未|并未|并没有)(?:在)?" + _WEN + r"(?:提到|提及|说明|给出|找到|出现)",
    r"^(?:未知|不详|无答案)$",
)
_CHINESE_IDLE = _compiled(r"(?:抱歉|对不起|很抱歉|不好意思)", r"(?:请|如果您|如果你|如需).{0,120}", r"(?:因此|所以)")

_REFUSING = [*_ENGLISH, *_GERMAN, *_SPANISH, *_FRENCH, *_CHINESE]
_IDLE = [*_ENGLISH_IDLE, *_GERMAN_IDLE, *_SPANISH_IDLE, *_FRENCH_IDLE, *_CHINESE_IDLE]
