"""The words of findings, places, sizes and denials, as regular expressions on lower-case text."""

from __future__ import annotations

import re

LABELS = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
"""CT-RATE's labels in the order of its tables."""

WITHOUT_SIDE = {
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
}

_WALL = r"calcif|plaque|atheroscler|atheroma|sclero"
_ENLARGED = r"enlarg|larger|patholog|increas|dilat|wide"

MENTIONS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (label, re.compile(pattern))
    for label, pattern in (
        ("Medical material", r"pace ?makers?|\bports?\b(?! of)|port-?a-?cath|port catheter|catheters?\b"),
        ("Medical material", r"(?:sternal|metallic|cerclage|sternotomy) (?:wires?|sutures?)|sternotom\w+"),
        ("Medical material", r"(?:tracheal|endotracheal|gastric|nasogastric|feeding|chest|drainage) tubes?"),
        ("Medical material", r"\btubes? in the|tracheostomy|\bstents?\b|prosthe\w+|\bdrains?\b|electrodes?"),
        ("Medical material", r"\bimplants?\b|surgical (?:clips?|material)|medical (?:material|device)s?"),
        (
            "Arterial wall calcification",
            rf"\baort(?:a|ic)\b(?=[^.]*(?:{_WALL}))|(?:{_WALL})\w*(?=[^.]*\baort(?:a|ic)\b)",
        ),
        (
            "Arterial wall calcification",
            r"(?<!coronary )(?<!coronary artery )atheroscler\w+(?![^.,]*\bcoronar)",
        ),
        ("Arterial wall calcification", r"(?:arterial|vascular) (?:wall )?calcif\w+"),
        ("Cardiomegaly", r"cardiomegal\w+|enlarged heart|enlargement of the heart|cardiac enlargement"),
        (
            "Cardiomegaly",
            rf"\bheart(?: size| contours?| shadow)?(?= (?:is|was|appears|size)[^.,]*(?:{_ENLARGED}))",
        ),
        ("Cardiomegaly", rf"(?:cardio-?thoracic (?:ratio|index)|\bctr\b)(?=[^.,]*(?:{_ENLARGED}))"),
        ("Pericardial effusion", r"pericardial (?:effusions?|fluid)|(?:around|surround\w*) the heart"),
        (
            "Pericardial effusion",
            r"(?:fluid|effusions?) in the pericardi\w+|pericardial(?=,? (?:or|and|nor) pleural)",
        ),
        ("Pericardial effusion", r"pericardial(?=, pleural)"),
        (
            "Coronary artery wall calcification",
            rf"\b(?:coronar\w+|lad|rca|lcx|circumflex)\b(?=[^.,]*(?:{_WALL}))"
            rf"|(?:{_WALL})\w*(?=[^.,]*(?:, (?:and )?(?:the )?[a-z]{{0,10}} ?)?"
            r"\b(?:coronar|lad\b|rca\b|lcx\b|circumflex))",
        ),
        ("Hiatal hernia", r"hiat(?:al|us) herni\w*|diaphragmatic hernia"),
        ("Lymphadenopathy", r"lymphadenopath\w*|adenopath\w*|lymphadenomegal\w*"),
        ("Lymphadenopathy", r"enlarged (?:[\w-]+,? ){0,4}(?:lymph )?nodes?\b"),
        ("Lymphadenopathy", r"enlarged (?:[\w-]+ )?(?=(?:and|or) [\w-]+ lymph nodes?\b)"),
        ("Lymphadenopathy", r"lymph nodes?\b(?=[^.]*(?:enlarg|in pathological))"),
        ("Emphysema", r"emphysem\w*"),
        ("Atelectasis", r"(?:fibro)?-?(?:sub)?atelecta\w*"),
        (
            "Lung nodule",
            r"\b(?:micro)?nodul(?:e|es|ar lesions?)\b"
            r"|(?:lung|pulmonary) (?:mass(?:es)?|lesions?|metastas[ie]s)",
        ),
        ("Lung nodule", r"\bmass(?:es)?\b"),
        ("Lung opacity", r"ground[- ]?glass|opaci\w+|infiltrat\w+"),
        ("Pulmonary fibrotic sequela", r"sequel\w*|fibro(?:tic|us|sis)\b(?! atelecta)"),
        (
            "Pleural effusion",
            r"(?:pleural|parapneumonic|pleuro-?pericardial) (?:effusions?|fluid)|hydrothora\w+",
        ),
        (
            "Pleural effusion",
            r"(?<!pericardial )\beffusions?\b(?! in the pericardi)|pleural(?=,? (?:or|and|nor) pericardial)",
        ),
        (
            "Pleural effusion",
            r"(?:fluid|effusion) (?:in|of) the (?:[\w-]+ )?(?:pleura|hemithora)|pleural(?=, pericardial)",
        ),
        ("Mosaic attenuation pattern", r"mosaic"),
        (
            "Peribronchial thickening",
            r"peribronch\w+ (?:wall )?(?:thicken|cuff)\w*|bronchial wall thicken\w*",
        ),
        ("Peribronchial thickening", r"(?:bronchial walls?|walls? of the bronch\w+)(?=[^.,]*thick)"),
        ("Peribronchial thickening", r"thickening of the bronchial walls?|peribronch\w+(?=[^.,]*thicken)"),
        ("Consolidation", r"consolidat\w*|pneumonia\b|pneumonic\b"),
        ("Bronchiectasis", r"bronchiecta\w*|\bbronchi(?:oles)?\b(?=[^.]*\bdilat)"),
        (
            "Interlobular septal thickening",
            r"septal thickening|interlobular (?:septal )?thickening"
            r"|thicken\w* (?:of )?(?:the )?(?:interlobular )?sept\w+",
        ),
        ("Interlobular septal thickening", r"(?:interlobular )?septa\b(?=[^.,]*thick)"),
    )
)
"""(label, its words): statements of a finding, denied or not."""

ORGANS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (labels, re.compile(pattern))
    for labels, pattern in (
        (("Pleural effusion",), r"pleural (?:spaces?|cavit\w+|recess\w*)|costophrenic \w+"),
        (("Pericardial effusion",), r"\bpericardium\b|pericardial (?:space|cavity)"),
        (
            ("Cardiomegaly",),
            r"\bheart\b(?! (?:failure|rate))|cardiac (?:size|silhouette|dimensions?|contours?)"
            r"|cardio-?thoracic (?:ratio|index)",
        ),
        (
            ("Consolidation", "Lung opacity"),
            r"\blungs?\b(?! (?:apex|apices|base))|(?:lung|pulmonary) parenchyma",
        ),
        (("Lymphadenopathy",), r"lymph nodes?\b"),
    )
)
"""(labels, organ): the organ called normal denies these labels; anything else said of it states none."""

NORMAL = re.compile(
    r"(?<!not )(?<!not of )(?<!near-)(?<!than )\b(?:normal|clear|unremarkable|natural|dry|well aerated"
    r"|well ventilated|not enlarged"
    r"|(?:are|is|was|were) free|not (?:\w+ ){0,2}enlarged)\b"
)

_CHANGE = (
    r"(?:significant|interval|evident|apparent|relevant|clear|major|essential|substantial|obvious|further|other"
    r"|notable)"
)
_CHANGED = (
    r"(?:change|increase|decrease|difference|progress|regress|longer|alteration|growth|doubt|additional)"
)
BEFORE = re.compile(
    rf"\bno\b(?! (?:{_CHANGE} )*{_CHANGED})|\bwithout\b(?! (?:{_CHANGE} )*{_CHANGED})|\bneither\b|\bnor\b"
    r"|\babsence of\b|\babsent\b(?= [a-z])|\bfree of\b|\bnegative for\b|\bnone of\b"
    r"|\black of\b|\bexclu(?:des|sion of)\b"
    r"|\b(?:do|does|did|is|are|was|were|has|have)(?: not|n't) (?:\w+ )?"
    r"(?:show|shows|reveal|contain|demonstrate|exhibit|a\b|an\b|any\b|have)"
    r"|\bnot (?:a|an|any)\b|\bruled? out\b|\bno longer (?:a|any)\b"
    r"|\bnot (?:seen|observed|detected|present|visible) ?:"
)
"""A denial of what comes after it."""

AFTER = re.compile(
    r"\b(?:not|no longer|never)(?: \w+){0,2}? (?:seen|observed|detected|present|visible|identified|found"
    r"|noted|evident|enlarged"
    r"|dilated|thickened|increased|demonstrated|visuali[sz]ed|shown|recogni[sz]able|distinguished|appreciated|encountered|selected"
    r"|described|there)\b"
    r"|\b(?:is|are|was|were|has|have)(?: (?!not\b|no\b)\w+)? "
    r"(?:absent|ruled out|excluded|resolved|disappeared|regressed completely)\b"
    r"|(?:n't|cannot be) (?:seen|observed|detected|visible|identified|found|shown)\b"
    r"|: ?(?:none|no|absent|negative)\b(?! \w)"
)
"""A denial of what comes before it."""

NOWHERE = re.compile(r"\b(?:on|in) neither (?:side|lung)\b")
"""A denial at the end of what reads like a statement."""

STATED = re.compile(
    r"\b(?:is|are|was|were) (?:also )?(?:seen|present|observed|noted|detected|visible|found)\b"
    r"|\bthere (?:is|are)\b"
)
"""A statement: a denial further on is not of what comes before this."""

GRADES = {
    "small": r"small(?! airway|er| bowel)|minimal|minor|tiny|little|trace|slight|minimally",
    "moderate": r"moderate|moderately|medium(?:-sized)?",
    "large": r"large(?!st| airway)|massive|big|huge|extensive",
    "mild": r"mild|mildly",
    "severe": r"severe|severely|marked|markedly|pronounced|advanced|heavy|diffuse",
}
GRADE = re.compile(r"\b(?:" + "|".join(f"(?P<{name}>{words})" for name, words in GRADES.items()) + r")\b")

LOBE = re.compile(r"\b(right|left) (upper|middle|lower) lobes?\b")
SIDE = re.compile(
    r"\b(?P<both>both(?! main| hemidia| kidney| adren| breast)"
    r"|bilateral\w*|either|neither side|bibasal\w*|bibasilar|biapical)\b"
    r"|\b(?P<side>right|left)\b(?! (?:heart|atri|ventric|main|coronary"
    r"|pulmonary arter|kidney|adren|diaphragm|hemidiaphragm|lobe of the)"
    r"|\w)"
)
MILLIMETRES = re.compile(
    r"(?P<first>\d+(?:[.,]\d+)?)"
    r"(?P<more>(?: ?(?:mm|cm)? ?[x×*] ?\d+(?:[.,]\d+)?)*)"
    r"[ -]?(?P<unit>mm|cm|millimet(?:er|re)s?|centimet(?:er|re)s?)\b"
)
MILLILITRES = re.compile(
    r"(\d+(?:[.,]\d+)?)[ -]?(?P<unit>ml|cc|cm3|cm³|millilit(?:er|re)s?|l|lit(?:er|re)s?)(?!\w)"
)
MORE = re.compile(
    r"\b(?:mainly|predominantly|especially|particularly|more|mostly|primarily|larger|greater"
    r"|worse|prominent) (?:on|in) the (?:right|left)\b(?! (?:upper|middle|lower))"
)
"""Of a finding on both sides: where there is more of it."""
RATIO = re.compile(r"(?:ratio|index|ctr)\b[^.\d]*(0?[.,]\d+)")

FOREIGN = re.compile(
    r"\b(?:thyroid|cutaneous|intracutaneous|subcutaneous|adrenal|liver|hepatic|renal|kidneys?|breasts?|spleen|splenic|pelvi[cs]"
    r"|abdom\w+|inguinal|obturator|iliac|fractures?|ribs?|vertebra\w*|bones?|skin|gallbladder|mesenter\w+|cysts?)\b"
)
"""Words of other organs: a statement about them is not a finding of lungs, heart and pleura."""
THORACIC = re.compile(
    r"\b(?:thorac|thorax|mediast|axill|hilar|perihilar|lung|pulmon|pleur|peric|aort|coronar|chest)"
)
