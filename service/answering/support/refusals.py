"""Whether an answer says that it has none.

Models refuse in words of their own, whatever they were told to say. An answer is a refusal if one of its sentences says
that the documents, or the speaker, do not know, and no other sentence says anything else: what is said about some third
thing ("The law does not say that …") is content, and so is what follows a "but".

The words are English, German, Spanish, French and Chinese.
"""

from __future__ import annotations

import re
from textwrap import dedent

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
    """Sentences, cut before each "but", without markers, and without marks around them."""
    parts = [part for start, end in sentences(text) for part in _TURN.split(text[start:end])]
    bare = (_AROUND.sub("", _MARKERS.sub("", part).replace("\u2019", "'")) for part in parts)
    return [" ".join(part.split()) for part in bare if part]


def _patterns(written: str, **parts: str) -> list[re.Pattern[str]]:
    """One pattern a line; a line that is further in goes on with the one before. ``{part}`` stands for a part."""
    filled = dedent(written).strip()
    for _ in range(3):  # parts hold parts
        filled = re.sub(r"\{([a-z]+)\}", lambda name: parts[name.group(1)], filled)
    return [re.compile(line, re.IGNORECASE) for line in re.sub(r"\n +", "", filled).splitlines()]


_MARKERS = re.compile(r"\[[^\[\]]{1,12}\]")
_AROUND = re.compile(
    r"^[\W_]+|(?<![^\w)])[^\w)]++$|^(?:answer|antwort|respuesta|réponse|答案|回答)\s*[:：]\s*",
    re.IGNORECASE,
)
_TURN = re.compile(
    r"(?:[,;.\u2013\u2014]|(?<!\s))\s++(?:but|however|though|although|nevertheless|still|yet|aber|jedoch|allerdings|doch|pero"
    r"|sin embargo|aunque|mais|cependant|toutefois)\b[,:]?\s*"
    r"|(?:[,，;；。]|(?<!\s))\s*+(?:但是|不过|然而|但)[,，]?",
    re.IGNORECASE,
)
_REPORTED = re.compile(
    r",\s(?:he |she |they )?(?:said|says|wrote|writes|replied|answered|asked|thought)\b", re.IGNORECASE
)

_ENGLISH = {
    # whoever is asked: the documents in all their names
    "source": r"(?:(?:the|these|those|this|any of the|either of the|all of the|all|your|my|both|none of the"
    r"|neither of the|no) )?(?:(?:given|provided|available|above|supplied|retrieved|following|relevant|search|context"
    r"|two|three|text) )*(?:documents?|passages?|texts?|contexts?|sources?|excerpts?|articles?|evidence|information"
    r"|data|content|materials?|paragraphs?|results?|answers?|files?|snippets?"
    r"|(?:passage|document|text|source) \d+(?:(?:,| and|, and) \d+)*)(?: (?:given|provided|above|here|supplied"
    r"|available|themselves|itself|in the (?:documents?|passages?|texts?|context)"
    r"|you (?:gave|provided|have provided|shared)(?: me)?))*",
    "they": r"(?:{source}|they|it)",
    "lead": r"(?:[\w ,']{0,80}, )?",
    "not": r"(?:do not|does not|don't|doesn't|did not|didn't|cannot|can't|could not|couldn't|never)"
    r"(?: \w+ly| even| seem to| appear to| actually)*",
    "tell": r"(?:say|mention|specify|state|indicate|tell|explain|describe|discuss|address|reveal|disclose|clarify|name"
    r"|list|answer|cover|refer to|speak of|talk about)",
    "hold": r"(?:contain|provide|give|include|have|offer|hold|supply|present|show)",
    "knowledge": r"(?:(?:an?|the|any|enough|sufficient|further|more|direct|specific|explicit|clear|relevant|such|that"
    r"|this|detailed|necessary|adequate|needed|required|definitive|exact|precise|concrete|additional|other) )*"
    r"(?:information|info|answers?|details?|mentions?|data|evidence|context|references?|statements?|indications?"
    r"|explanations?|descriptions?|specifics|clues?)\b",
    "asked": r"(?:who|whom|whose|what|when|where|which|why|how|whether|if|about|anything|it|this|that question)\b",
    "seen": r"(?:mentioned|stated|specified|given|provided|said|found|described|discussed|addressed|indicated|included"
    r"|contained|explained|listed|named|answered|covered|disclosed|revealed|shown|determined|known|available|clear|present|documented"
    r"|recorded|explicit(?:ly)? \w+)",
    "isnot": r"(?:(?:is|are|was|were) (?:not|never)|isn't|aren't|wasn't|weren't|(?:cannot|can't|could not|couldn't) be)"
    r"(?: \w+ly)?",
    "saying": r"(?:know|answer|find|determine|say|tell|provide|have|see|give|sure|aware|certain|confirm|identify|locate"
    r"|be able to|assist|help)\b(?! (?:him|her|them|you|me|us|myself)\b)",
}
_REFUSING_ENGLISH = _patterns(
    r"""
    ^{lead}{they} {not} {tell}(?! that\b)\b
    ^{lead}{they} {not} {hold} (?:{knowledge}|{asked})
    ^{lead}(?:none|neither) of {source} (?:{tell}|{hold})s?\b
    ^{lead}no {source} (?:{tell}|{hold})s?\b
    ^{lead}{they} (?:has|have|contains?|gives?|provides?|includes?|offers?|makes?|says?) (?:no|nothing)\b
     (?: {knowledge}| about| on| of| to say|$)
    ^{lead}there (?:is|are|was|were) (?:no|not any|not enough|insufficient|nothing)
     (?: {knowledge}(?! that\b)| in {source})
    ^{lead}there (?:isn't|aren't|wasn't|weren't) (?:any |enough )?{knowledge}
    ^(?:no|not enough|insufficient) {knowledge}
     (?: (?:is|are|was|were) (?:\w+ )?{seen}| about| on| regarding| in {source}|$)
    \b{isnot} {seen}(?: \w+)? (?:in|by|from|within|anywhere in) {source}
    ^(?:the (?:answer|information|question|requested \w+)[\w ,'"]{0,120}|it|this|that) {isnot} {seen}
    ^(?:it is|it's) (?:unclear|unknown|impossible|not possible|unspecified|not clear)
     (?:$| to (?:determine|say|tell|know|answer)\b|.{0,160} (?:from|in|by|based on) {source})
    ^(?:not|never)(?: \w+ly)? {seen}
    ^(?:unknown|unspecified|unanswerable|n/a|na|no answer|none given|i do not know|no idea)$
    ^{lead}i(?:'m| am)? (?:do not|don't|cannot|can't|could not|couldn't|am unable to|unable to|am not able to
     |not able to|was unable to|will not|won't|am not|'m not)(?: \w+ly)? {saying}
    ^{lead}(?:you )?(?:cannot|can't) (?:be )?(?:answer|determine|say|tell|know)(?:ed|d|n)?\b
    """,
    **_ENGLISH,
)
_IDLE_ENGLISH = _patterns(
    r"""
    (?:i(?:'m| am) )?(?:sorry|afraid|i apologi[sz]e)\b(?: for [\w ]{1,40})?
    unfortunately|therefore|thus|so|hence|as such|for this reason
    (?:please|if you|feel free|let me know|you (?:may|might|can|could)|could you|would you)\b.{0,200}
    {they} (?:is|are) about .{0,160}
    {they} (?:only|just|merely|simply|instead|mainly|primarily) \w+\b.{0,240}
    (?:based on|according to|from) {source}
    """,
    **_ENGLISH,
)

_GERMAN = {
    "source": r"(?:(?:die|den|der|das|dem|diese[nmr]?|ihre[nm]?|alle|keine[sr]?|keines der|keiner der|im|in) )*"
    r"(?:(?:vorliegenden?|gegebenen?|bereitgestellten?|obigen?|genannten?|vorhandenen?) )*(?:dokument(?:e|en|s)?"
    r"|text(?:e|en|s)?|passagen?|textstellen?|abschnitt(?:e|en|s)?|unterlagen|quellen?|kontext(?:es)?|auszug|auszüge[n]?"
    r"|informationen|material(?:ien)?)",
    "no": r"\b(?:nicht|nichts|keine?[nrs]?)\b",
    "so": r"(?:leider |es |das |dies |diese frage |die frage |dazu |darauf |darüber |hierzu |hier )*",
}
_REFUSING_GERMAN = _patterns(
    r"""
    ^{source} (?:sagen|sagt|nennen|nennt|erwähnen|erwähnt|enthalten|enthält|geben|gibt|machen|macht|beantworten
     |beantwortet|beschreiben|beschreibt|liefern|liefert|bieten|bietet|äußern|verraten|verrät)\b
     (?!.{0,40}\bdass\b).{0,160}{no}
    \b(?:steht|stehen|findet sich|finden sich|geht|gehen|ist|sind|wird|werden|gibt es|lässt sich)\b.{0,120}
     {no}.{0,80}(?:{source}|hervor|entnehmen)
    \b(?:in|aus|laut|von) {source} .{0,120}{no}
    ^(?:dazu|darüber|hierzu|hierüber) .{0,60}{no}
    ^(?:es gibt|es liegen|mir liegen|ich habe|es sind) {so}(?:keine|nicht genügend|nicht genug) (?:\w+ )?
     (?:informationen?|angaben?|hinweise?|antwort|details|daten)
    ^(?:leider )?(?:ich )?(?:kann|weiß|könnte) (?:ich )?{so}{no}
    ^(?:die|diese) (?:frage|antwort|information) .{0,60}\bnicht\b.{0,80}
     (?:beantwort|ersichtlich|enthalten|bekannt|angegeben|genannt)
    ^(?:keine (?:angaben?|informationen?|antwort)|nicht (?:angegeben|bekannt|erwähnt|genannt|ersichtlich)|unbekannt)\b
    """,
    **_GERMAN,
)
_IDLE_GERMAN = _patterns(
    r"""
    leider|es tut mir leid|entschuldigung|tut mir leid
    (?:bitte|wenn sie|falls sie)\b.{0,200}
    """
)

_SPANISH = {
    "source": r"(?:(?:en|de|del|según|los|las|el|la|este|estos|esta|estas|ninguno de los|ningún|ninguna de las) )*"
    r"(?:documentos?|textos?|pasajes?|fragmentos?|contextos?|fuentes?|artículos?|información|materiales?)"
    r"(?: (?:proporcionad|dad|disponible|anterior|facilitad)\w*)*",
    "knowledge": r"(?:información|respuestas?|detalles?|datos?|mención)",
    "seen": r"(?:menciona|indica|especifica|dice|encuentra|explica|describe|precisa|mencionad[oa]|especificad[oa]"
    r"|indicad[oa]|en)",
}
_REFUSING_SPANISH = _patterns(
    r"""
    ^{source} no (?:lo |la |se |nos )*(?:dicen?|mencionan?|especifican?|indican?|responden?|explican?|describen?
     |aclaran?|detallan?|precisan?|revelan?|nombran?)\b(?! que\b)
    ^{source} no (?:contienen?|proporcionan?|dan?|ofrecen?|incluyen?|tienen?|aportan?) .{0,40}{knowledge}
    ^{source} no (?:contienen?|dan?|dicen?) nada
    \bno (?:se |está |es |aparece |figura |consta )(?:\w+ )?{seen}?\b.{0,80}{source}
    ^no (?:hay|existe|tengo|dispongo de|se (?:proporciona|ofrece|da|encuentra)) (?:\w+ )?(?:suficiente )?{knowledge}
    ^(?:lo siento, )?(?:yo )?no (?:lo sé|sé|puedo (?:responder|contestar|determinar|decir|encontrar)
     |se (?:sabe|puede (?:determinar|responder|saber|contestar)|menciona|especifica|indica|dice))\b
    ^(?:la respuesta|esta pregunta|la información) no (?:se |está |es |puede )
    ^(?:desconocid[oa]|sin respuesta|no especificad[oa]|no mencionad[oa])$
    """,
    **_SPANISH,
)
_IDLE_SPANISH = _patterns(
    r"""
    lo siento|lamentablemente|desafortunadamente
    (?:por favor|si (?:usted|tiene|necesita|desea))\b.{0,200}
    """
)

_FRENCH = {
    "source": r"(?:(?:dans|de|des|du|selon|les|le|la|l'|ce|cet|ces|aucun des|aucun|aucune) ?)*(?:documents?|textes?"
    r"|passages?|extraits?|contextes?|sources?|articles?|informations?|contenus?)"
    r"(?: (?:fourni|donné|disponible|ci-dessus|précédent)\w*)*",
    "tell": r"(?:dit|disent|mentionnent?|précisent?|indiquent?|répond(?:ent)?|expliquent?|décri(?:t|vent)|spécifient?"
    r"|révèlent?|parlent?)",
    "hold": r"(?:contien(?:t|nent)|fournit|fournissent|donnent?|offrent?|apportent?|a|ont|comportent?|permet(?:tent)?)",
    "knowledge": r"(?:information|réponse|détail|mention|donnée|indication)",
}
_REFUSING_FRENCH = _patterns(
    r"""
    ^{source} n(?:e |')(?:le |la |l'|en |nous |y )*{tell}\b(?:(?! que\b).){0,60}
     \b(?:pas|rien|aucune?|jamais)\b(?! que\b)
    ^{source} n(?:e |'){hold} (?:pas|rien|aucune?)\b
    \bn'(?:est|a|ont|était|sont|y est)\b.{0,20}\bpas\b.{0,40}
     \b(?:mentionné|précisé|indiqué|donné|fourni|dit|spécifié|trouvé)\w*
    ^il n'y a (?:pas|aucune?|rien) (?:assez |suffisamment )?(?:d'|de )?{knowledge}
    ^(?:désolé, )?je ne (?:sais|peux|dispose|trouve|connais) (?:pas|d'aucune)\b
    ^je n'ai (?:pas|aucune)\b.{0,40}{knowledge}
    ^(?:aucune {knowledge}|impossible (?:de|à) (?:répondre|déterminer|dire|savoir)
     |non (?:précisé|mentionné|spécifié|indiqué)|inconnu)
    ^on ne (?:sait|peut) pas\b
    """,
    **_FRENCH,
)
_IDLE_FRENCH = _patterns(
    r"""
    désolée?|malheureusement|je suis désolée?
    (?:veuillez|si vous|s'il vous plaît)\b.{0,200}
    """
)

_CHINESE = {
    "source": r"(?:根据|在|从|依据)?(?:所|以上|上述|这些|该|此|本|给定的?|提供的?"
    r"|给出的?|现有的?|已知的?|您|你|我|相关)*"
    r"(?:文档|文件|资料|文中|文章|材料|上文|段落|原文|文本|信息|内容|上下文|参考资料|片段|文献)"
    r"(?:中|里|内|本身|都|均|[,，]|并)*",
    "sorry": r"(?:(?:很|非常)?(?:抱歉|对不起|不好意思|遗憾)[,，]?)?",
    "no": r"(?:没有|没|未|并未|并没有|未曾|不|无)(?:明确|具体|直接|有|任何|足够的?|相关的?)*",
    "tell": r"(?:提到|提及|说明|说|给出|提供|包含|回答|指出|涉及|描述|介绍|列出|记载|解释|信息|内容|答案|足够)",
}
_REFUSING_CHINESE = _patterns(
    r"""
    ^{sorry}{source}{no}{tell}(?!.{0,4}(?:不得|必须|可以|应当))
    ^{sorry}{source}.{0,12}(?:无法|不能)(?:回答|确定|得知|判断|找到|获得|知道)
    ^{sorry}(?:我|这个问题|该问题|问题)?(?:不知道|无法(?:回答|确定|得知|判断|找到|提供)|不清楚|不能(?:回答|确定)|不确定
     |没有(?:相关|足够的?)?(?:信息|答案))
    ^(?:未|没有|没)(?:明确|具体)?(?:提及|提到|说明|提供|指出|给出)
    (?:没有|未|并未|并没有)(?:在)?{source}(?:提到|提及|说明|给出|找到|出现)
    ^(?:未知|不详|无答案)$
    """,
    **_CHINESE,
)
_IDLE_CHINESE = _patterns(
    r"""
    (?:很|非常)?(?:抱歉|对不起|不好意思|遗憾)|因此|所以
    (?:请|如果您|如果你|如需).{0,120}
    """
)

_REFUSING = [*_REFUSING_ENGLISH, *_REFUSING_GERMAN, *_REFUSING_SPANISH, *_REFUSING_FRENCH, *_REFUSING_CHINESE]
_IDLE = [*_IDLE_ENGLISH, *_IDLE_GERMAN, *_IDLE_SPANISH, *_IDLE_FRENCH, *_IDLE_CHINESE]
