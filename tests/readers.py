"""Tiny tokenizers and processors, built here, for tiny models of every task."""

import numpy as np
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "The capital of France is Paris. The Colosseum is in Rome, and 8,320 m is high.",
    "Who is Clara? Clara has a goat; Bob has a dog! Is it true? Yes, it is.",
    "中文分词测试，很好。😀 naïve co-op",
    "user assistant system question answer label",
]
CHAT = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level(chat=True):
    """Return a byte-level BPE tokenizer as GPT's, which begins each text with a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<|start|>", "<|end|>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|start|>"],
        chat_template=CHAT if chat else None,
    )


def word_pieces():
    """Return a WordPiece tokenizer as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def images(size=32):
    """Return an image processor of the size."""
    return transformers.ViTImageProcessor(size={"height": size, "width": size})


def clip_images(size=32, crop=32):
    """Return an image processor that crops, as CLIP's."""
    return transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": crop, "width": crop})


def photo(size=40):
    """Return an image as an array."""
    return np.random.default_rng(0).integers(0, 255, (size, size + 10, 3), dtype=np.uint8)
