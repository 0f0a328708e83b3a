"""The model's own byte-level BPE tokenizer, of the kind (GPT-2's, as CodeGen uses it) that comes with Phi-2."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from network import LANGUAGE
from pictures import Split
from questions import QuestionBank, draw_turn
from shapes import generate
from tinygptv.export.sources.families import TINYGPT_V
from tinygptv.runtime.language.prompt import IMAGE_SLOT, render
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
(SEPARATOR,) = TINYGPT_V.stop_strings
TEMPLATE = next(template for template in TINYGPT_V.templates if template.name == "human_assistant")
ASSISTANT, HUMAN = TEMPLATE.assistant, TEMPLATE.user
BEFORE_IMAGE, AFTER_IMAGE = f"{HUMAN}{TEMPLATE.image.rstrip()}".split(IMAGE_SLOT)


class Vocabulary:
    """Turns the published ``human_assistant`` prompts into token ids, and answers back into text."""

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
        self.vocab = vocab
        self.merges = merges
        self._tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        self.encode = lru_cache(maxsize=100_000)(self._encode)
        (self.separator_id,) = self.encode(SEPARATOR)
        self.end_of_text_id = vocab[END_OF_TEXT]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text).ids)

    def prompt_ids(self, question: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Gives what stands before and what stands after the image tokens when one question is asked."""
        before, after = render(TEMPLATE, [(question, None)]).split(IMAGE_SLOT)
        return self.encode(before), self.encode(after)

    def decode_answer(self, token_ids: list[int]) -> str:
        """Gives an answer's text up to its stop token."""
        kept = [token_id for token_id in token_ids if token_id not in (self.separator_id, self.end_of_text_id)]
        return str(self._tokenizer.decode(kept)).strip()

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Reads what ``save`` wrote."""
        merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        pairs = [(first, second) for first, second in (line.split(" ") for line in merges)]
        return cls(json.loads((folder / "vocab.json").read_text(encoding="utf-8")), pairs)

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files of a Phi-2 folder."""
        context = LANGUAGE.max_position_embeddings
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        files = {
            "vocab.json": self.vocab,
            "added_tokens.json": {},
            "special_tokens_map.json": special,
            "tokenizer_config.json": {
                "tokenizer_class": "CodeGenTokenizer",
                "add_prefix_space": False,
                "model_max_length": context,
                **special,
            },
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def build_vocabulary(training: Split) -> Vocabulary:
    """Learns merges from the texts that the model is trained on; the same training split gives the same tokens.

    Pieces of the prompt are given apart, so that no merge reaches across ``###`` and the stop string stays one token.
    """
    rng = np.random.default_rng(0)
    bank = QuestionBank(training)
    texts = []
    for scene in generate(5000, rng)[1]:
        turn = draw_turn(scene, bank, rng)
        texts += [BEFORE_IMAGE, AFTER_IMAGE, f" {turn.question}", turn.answer, f" {turn.answer}", ASSISTANT, HUMAN]
    texts += 100 * [f"<{number}>" for number in range(101)]
    trainer = trainers.BpeTrainer(
        vocab_size=LANGUAGE.vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(texts, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted(learnt["vocab"].items(), key=lambda entry: entry[1]))
    return Vocabulary({**vocab, END_OF_TEXT: len(vocab)}, [(first, second) for first, second in learnt["merges"]])
