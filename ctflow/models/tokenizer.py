"""WordPiece tokens of reports: an own small vocabulary, or that of a published BERT."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from tokenizers import Encoding, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from torch import Tensor

from ctflow.errors import WeightsError

UNKNOWN = "[UNK]"
SPECIAL_TOKENS = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")


_IMPRESSION = re.compile(r"\b(?:impressions?|conclusions?|opinion)\b", re.IGNORECASE)
_SHORTEST_STEM = 3
"""Letters of a word before its ending."""
LARGEST_SHARE, USUAL_SHARE = 1 / 2, 1 / 4
"""Part of the tokens that a headed impression may take, and that the end of a report without headings gets
(in CT-RATE an impression is a seventh of a report)."""


class TokenBatch(NamedTuple):
    """Tokens of B reports, padded to the longest of them.

    Attributes:
        ids: ``[B, L]`` int64.
        mask: ``[B, L]`` int64, 1 where a token stands.
        lost: What each report lost to the limit; empty: nothing.
    """

    ids: Tensor
    mask: Tensor
    lost: list[str]


class UnknownWords(NamedTuple):
    """Words of a report that the vocabulary does not have.

    Attributes:
        share: Part of all words, 0 to 1; numbers and punctuation do not count.
        examples: Some of them.
    """

    share: float
    examples: list[str]


class ReportTokenizer:
    """BERT's way with text: lower case, words and punctuation, word pieces, [CLS] … [SEP].

    Args:
        backend: A tokenizer of the ``tokenizers`` library with BERT's special tokens.
        max_tokens: Longer reports lose tokens before their impression (``kept_tokens``).

    Raises:
        WeightsError: A special token is missing from the vocabulary.
    """

    def __init__(self, backend: Tokenizer, max_tokens: int) -> None:
        found_ids = {token: backend.token_to_id(token) for token in SPECIAL_TOKENS[:4]}
        ids = {token: index for token, index in found_ids.items() if index is not None}
        missing = sorted(found_ids.keys() - ids.keys())
        if missing:
            found = f"a vocabulary of {backend.get_vocab_size()} tokens without {', '.join(missing)}"
            raise WeightsError(
                found, "a BERT vocabulary", "point to the tokenizer that belongs to the weights"
            )
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.max_tokens = max_tokens
        self.pad_id, self.end_id = ids["[PAD]"], ids["[SEP]"]

    @classmethod
    def from_json(cls, text: str, max_tokens: int) -> ReportTokenizer:
        """Read the text of a ``tokenizer.json``.

        Raises:
            WeightsError: The text does not describe a tokenizer.
        """
        try:
            json.loads(text)
            return cls(Tokenizer.from_str(text), max_tokens)
        except WeightsError:
            raise
        except Exception as error:  # the library raises plain Exception on a malformed file
            raise WeightsError(f"tokenizer.json is not readable: {error}", "a tokenizer file") from None

    @classmethod
    def from_vocabulary(
        cls, tokens: Sequence[str], max_tokens: int, lowercase: bool = True
    ) -> ReportTokenizer:
        """Build BERT's tokenizer from the lines of a ``vocab.txt``."""
        vocabulary = {token: index for index, token in enumerate(tokens)}
        backend = _bert_backend(WordPiece(vocabulary, unk_token=UNKNOWN), lowercase)
        if all(t in vocabulary for t in ("[CLS]", "[SEP]")):
            _frame(backend)
        return cls(backend, max_tokens)

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return int(self.backend.get_vocab_size())

    def to_json(self) -> str:
        """Text of a ``tokenizer.json``."""
        return self.backend.to_str(pretty=True)

    def __call__(self, reports: Sequence[str]) -> TokenBatch:
        """Tokenise reports, at least one."""
        encodings = self.backend.encode_batch(list(reports))
        rows, lost = zip(*map(self._fitted, encodings, reports), strict=True)
        ids = torch.full((len(rows), max(map(len, rows))), self.pad_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return TokenBatch(ids, mask, list(lost))

    def _fitted(self, encoding: Encoding, report: str) -> tuple[list[int], str]:
        """Ids within the limit, and the text that was lost."""
        ids = encoding.ids
        if len(ids) <= self.max_tokens:
            return ids, ""
        offsets = encoding.offsets[1:-1]  # without [CLS] and [SEP]
        head, tail = kept_tokens(report, offsets, self.max_tokens - 2)
        lost = report[offsets[head][0] : offsets[len(offsets) - tail - 1][1]]
        return [*ids[: 1 + head], *ids[len(ids) - 1 - tail :]], lost

    def unknown_words(self, report: str) -> UnknownWords:
        """Words that are neither one token nor a known word with an ending.

        Words of another language do not all become [UNK]: most fall into pieces of a letter or two. Eight
        English hospital reports measure 0.3 to 0.46 with the embedded vocabulary, made from phantoms'; one
        report each in thirteen other languages measures 0.75 to 1.

        Args:
            report: Cleaned text (``clean_text``).
        """
        encoding = self.backend.encode(report)
        words: dict[int, list[int]] = {}
        for index, word in enumerate(encoding.word_ids):
            if word is not None:
                words.setdefault(word, []).append(index)
        total, unknown = 0, []
        for indices in words.values():
            pieces = [encoding.tokens[i] for i in indices]
            text = report[encoding.offsets[indices[0]][0] : encoding.offsets[indices[-1]][1]]
            if not any(character.isalpha() for character in text):
                continue
            total += 1
            known = len(pieces) == 1 or (len(pieces) == 2 and len(pieces[0]) >= _SHORTEST_STEM)
            unknown += [] if known and UNKNOWN not in pieces else [text]
        return UnknownWords(len(unknown) / max(total, 1), unknown[:5])


def kept_tokens(text: str, offsets: Sequence[tuple[int, int]], room: int) -> tuple[int, int]:
    """Which tokens of a long report stay.

    Args:
        text: The report.
        offsets: Where each of its tokens lies in ``text``; more than ``room`` of them.
        room: Tokens that can stay.

    Returns:
        How many at the beginning and how many at the end; together ``room``.
    """
    headings = [match.start() for match in _IMPRESSION.finditer(text)]
    if headings:
        first = next(i for i, (_, end) in enumerate(offsets) if end > headings[-1])
        tail = min(len(offsets) - first, int(room * LARGEST_SHARE))
    else:
        tail = int(room * USUAL_SHARE)
        starts = range(len(offsets) - tail, len(offsets))
        # From the beginning of a sentence on, where one begins there.
        tail = next((len(offsets) - i for i in starts if text[slice(*offsets[i - 1])] == "."), tail)
    return room - tail, tail


def train_wordpiece(reports: Iterable[str], vocab_size: int, max_tokens: int = 512) -> ReportTokenizer:
    """Learn a WordPiece vocabulary from reports.

    Args:
        reports: Cleaned report texts (``clean_text``).
        vocab_size: Upper limit; few texts give fewer tokens.
        max_tokens: See ``ReportTokenizer``.
    """
    texts = list(reports)
    backend = _bert_backend(WordPiece(unk_token=UNKNOWN), lowercase=True)
    words = {
        word
        for text in texts
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
    }
    # The trainer numbers pieces inside of words in the order of a hash map, which differs from process to
    # process, and ties between merges are broken by these numbers. Pieces that are given keep their order.
    inner = sorted({f"##{character}" for word in words for character in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *inner], show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    ids = backend.get_vocab()
    return ReportTokenizer.from_vocabulary(sorted(ids, key=lambda token: ids[token]), max_tokens)


def _bert_backend(model: WordPiece, lowercase: bool) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _frame(backend: Tokenizer) -> None:
    """Put [CLS] before and [SEP] after every report."""
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
