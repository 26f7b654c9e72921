"""Tiny tokenizers of the kinds that the families use, trained on a page of text.

Each is written as a tokenizer.json with the same steps as those on the hub; the SentencePiece ones
also exist as pieces with scores, which is what GGUF files hold.
"""

import io
import json
from dataclasses import dataclass, field

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers.convert_slow_tokenizer import generate_merges

CORPUS = """\
A river carries more than water: it carries sand, leaves, seeds and the heat of the day.
The miller counted the sacks twice, wrote 1024 in his book, and went home before the rain.
"Where does the road end?" she asked. "It doesn't end," he said; "it's only that we'll stop walking."
When the lamp went out they weren't afraid, because they'd known the room since they were children.
In 1987 the harbour froze; in 2003 it didn't. Prices rose by 3.75%, then fell by 12% within 48 hours.
Nobody reads the manual, and everybody asks what the manual says. I've seen it happen; you're next.
Bread needs flour, water, salt and time. Of these, time is the one that can't be bought.
The quick answer is often wrong, and the slow answer often comes too late to matter.
    for index in range(10):
        total += values[index] * 2
        if total > 100:
            return total
    fn main() { let mut sum = 0; for i in 0..32 { sum += i; } println!("{sum}"); }
Les élèves déjeunent à midi; l'été, ils mangent dehors. Où est la clé? Près de la fenêtre.
Grüße aus Köln: schöne Straßen, süße Äpfel, fröhliche Leute. Das Mädchen weiß es längst.
Привет, мир! Снег идёт уже третий день, а река ещё не замёрзла.
日本語の文章です。今日は良い天気ですね。中文也可以，没有问题。
Emojis 🙂 and 🚀 are characters, too; so are → arrows, ½ and €.
The river, the road and the room: the water in the river, the sand in the road, the lamp in the room.
They were there when the water rose, and they were there when the water fell again.
"""

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

GPT2 = None  # the split that ByteLevel does itself
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass
class Special:
    """A token that is found in the text before it is split."""

    content: str
    control: bool = True
    rstrip: bool = False


def byte_level(split, specials, *, merges=40, bos=None, digits=False, compose=False, whole_words=False):
    """A byte-level BPE tokenizer; `split` is the regular expression of its words."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if split is GPT2:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    else:
        steps.append(pre_tokenizers.Split(Regex(split), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if compose:
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        limit_alphabet=256,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    for special in specials:
        token = AddedToken(special.content, rstrip=special.rstrip, normalized=False, special=special.control)
        (tokenizer.add_special_tokens if special.control else tokenizer.add_tokens)([token])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos is not None:
        first = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), first])
    return json.loads(tokenizer.to_str())


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass
class Pieces:
    """A SentencePiece vocabulary."""

    processor: sentencepiece.SentencePieceProcessor
    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    specials: list[Special] = field(default_factory=list)

    def add(self, specials):
        """Appends special tokens, as converters do, or marks them where they are pieces already."""
        for special in specials:
            kind = CONTROL if special.control else USER_DEFINED
            if special.content == "<unk>":
                pass  # keeps a type of its own
            elif special.content in self.tokens:
                self.types[self.tokens.index(special.content)] = kind
            else:
                self.tokens.append(special.content)
                self.scores.append(-1000.0)
                self.types.append(kind)
            self.specials.append(special)
        return self

    def id(self, token):
        return self.tokens.index(token)

    def encode(self, text):
        """The reference: special tokens are cut out, sentencepiece encodes what lies between."""
        ids = []
        while text:
            found = [(text.find(s.content), -len(s.content), s) for s in self.specials if s.content in text]
            at, _, special = min(found, key=lambda f: f[:2]) if found else (len(text), 0, None)
            if at:
                ids += self.processor.encode(text[:at])
            if special is None:
                break
            ids.append(self.id(special.content))
            text = text[at + len(special.content) :]
            if special.rstrip:
                text = text.lstrip()
        return ids


def pieces(model_type="bpe", *, size=384, dummy_prefix=True, gemma=False, **options):
    """Trains a SentencePiece vocabulary with byte fallback, as Llama's and Gemma's are."""
    model = io.BytesIO()
    control = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "eos_piece": "<eos>", "bos_piece": "<bos>"}
    settings = {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "byte_fallback": True,
        "character_coverage": 0.98,
        **(control if gemma else {}),
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=model,
        model_type=model_type,
        vocab_size=size,
        hard_vocab_limit=False,
        add_dummy_prefix=dummy_prefix,
        num_threads=1,
        minloglevel=2,
        **settings,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = Pieces(processor)
    for token in range(processor.vocab_size()):
        vocabulary.tokens.append(processor.id_to_piece(token))
        vocabulary.scores.append(processor.get_score(token))
        kinds = [
            (processor.is_unknown(token), UNKNOWN),
            (processor.is_control(token), CONTROL),
            (processor.is_byte(token), BYTE),
            (True, NORMAL),
        ]
        vocabulary.types.append(next(kind for holds, kind in kinds if holds))
    controls = [
        token for token, kind in zip(vocabulary.tokens, vocabulary.types) if kind in (UNKNOWN, CONTROL)
    ]
    return vocabulary.add(Special(token) for token in controls)


def sentencepiece_json(vocabulary, style, *, bos="<s>"):
    """A tokenizer.json as converters write it. Style: how the space before a text is treated.

    "prepend": a normaliser writes one (Llama 2, Phi 3); "metaspace": a pre-tokenizer does, only
    before the very first word (Mistral); "none": nothing does (Gemma).
    """
    vocab = {token: index for index, token in enumerate(vocabulary.tokens)}
    learned = [
        (token, score)
        for token, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.types)
        if kind == NORMAL
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=generate_merges(vocab, learned),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tail = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if style == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        )
        tail.append(decoders.Strip(" ", 1, 0))
    elif style == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
        tail.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(tail)
    for special in vocabulary.specials:
        token = AddedToken(special.content, rstrip=special.rstrip, normalized=False, special=special.control)
        (tokenizer.add_special_tokens if special.control else tokenizer.add_tokens)([token])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocab[bos])]
        )
    return json.loads(tokenizer.to_str())
