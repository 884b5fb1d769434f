"""Texts on which an exported tokenizer is held against ours: languages, code, emoji, blanks, and its own pieces."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator

from data.text.spiece import BLANK, NORMAL, USER_DEFINED
from data.text.tokenizer import Tokenizer

_MIXTURES, _PIECES = 400, 24  # texts of pieces, and how many each has

PROSE = (
    "The quick brown fox jumps over the lazy dog; it's 7:45 already, isn't it?",
    "Der \u00dcbermut z\u00e4hmt schlie\u00dflich auch die gr\u00f6\u00dften B\u00f6cke.",
    "O\u00f9 est pass\u00e9 l'\u00e9l\u00e8ve na\u00eff \u2014 \u00e7a alors ! \u00ab Voil\u00e0 \u00bb, dit-il.",
    "\u00bfQu\u00e9 pas\u00f3? \u00a1El ping\u00fcino comi\u00f3 diecis\u00e9is \u00f1oquis!",
    "Perch\u00e9 l'universit\u00e0 \u00e8 cos\u00ec lontana?",
    "N\u00e3o h\u00e1 cora\u00e7\u00e3o que aguente.",
    "De \u00e9\u00e9n zijn dood is de ander zijn brood.",
    "Flygande b\u00e4ckasiner s\u00f6ka hwila p\u00e5 mjuka tuvor.",
    "T\u00e4\u00e4ll\u00e4 on hyv\u00e4 y\u00f6, sanoi \u00e4iti.",
    "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144.",
    "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae.",
    "\u0391\u03c5\u03c4\u03cc \u03b5\u03af\u03bd\u03b1\u03b9 \u03ad\u03bd\u03b1 \u03cc\u03bd\u03bf\u03bc\u03b1.",
    "\u0421\u044a\u0435\u0448\u044c \u0435\u0449\u0451 \u044d\u0442\u0438\u0445 \u0431\u0443\u043b\u043e\u043a.",
    "\u0407\u0436\u0430\u043a \u0457\u0441\u0442\u044c \u0491\u0440\u0443\u0448\u0456.",
    "\u3044\u308d\u306f\u306b\u307b\u3078\u3068\u3001\u5929\u6c17\u304c\u3044\u3044\u3002",
    "\u30ab\u30bf\u30ab\u30ca \uff76\uff9e",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u5427\u3002",
    "\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u0645",
    "\ud55c\uad6d\uc5b4\ub294 \uc7ac\ubbf8\uc788\ub2e4",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "caf\u00e9, \ufb01ne, \uff21\uff22\uff23, \u00bd \u00b2 \u2122 \u2460, 10\u00a0\u20ac at 5\u00a0\u00b0C",
    "smile \U0001f600, thumbs \U0001f44d\U0001f3fd, family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "flag \U0001f1eb\U0001f1f7, one\u200btwo\u00adthree \ufffd",
)
CODE = (
    "def f(x):\n    if x == 0:\n        return None\n\n    return [y**2 for y in range(x)]  # squares\n",
    "\tif (a && b) {\n\t\treturn *p++;\n\t}\n",
    'import os, re\nPATTERN = re.compile(r"^\\s*(\\w+)\\s*=\\s*(.*)$")\n',
    "<html><body class='x'>a &lt; b</body></html>",
    "SELECT * FROM t WHERE n >= 10 AND name LIKE '%x%';",
    '{"a": [1, 2.5e-3, null], "b": {"c": "\\u00e9"}}',
    '#!/bin/sh\nfor f in *.txt; do echo "$f" >> out; done\r\n',
    "<0x41> <0x0A> [0] <0>",
    "<pad>, </s> and <unk> in a text, <s>struck</s>",
)
SENTINELS = (
    "<extra_id_0> cute dog<extra_id_1> the",
    "The <extra_id_0> walks in <extra_id_1> park.",
    "un<extra_id_1>able <extra_id_0>\n\n  x<extra_id_0><extra_id_1>",
    "def <extra_id_0>(self):\n    <extra_id_1>",
)


def sample_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """The built-in texts, runs of a character, and mixtures of the tokenizer's own pieces; the same every time."""
    for text in PROSE:
        yield text
        yield unicodedata.normalize("NFD", text)
    yield from CODE
    yield " ".join(PROSE)
    yield "\n".join(CODE)
    for character in " \n\t=-#*_.a":
        for length in (1, 2, 3, 5, 7, 13, 20, 37, 64):
            yield f"x{character * length}y"
            yield character * length
            yield f"{character * length}  x{character * length}\n"
    if tokenizer.sentinels > 1:
        yield from SENTINELS
    pieces = [
        piece.piece.replace(BLANK, " ")
        for piece in tokenizer.spiece.proto.pieces
        if piece.type in (NORMAL, USER_DEFINED)
    ]
    draw = random.Random(0)
    for _ in range(_MIXTURES):
        yield "".join(draw.choices(pieces, k=_PIECES))
