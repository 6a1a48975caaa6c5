"""Train the small language model on subject-verb agreement and measure it on held-out sentences.

The defaults reproduce ``examples/models/agreement`` in a few minutes on one processor core.
"""

import json
import random

import torch
from agreement import MAX_PHRASES, MODEL_PATH, SPECIAL_TOKENS, sentences, vocabulary
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from training import fit, options
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BATCH_SIZE = 64
LEARNING_RATE = 3e-3
MAX_LENGTH = 32
EVALUATION_SIZE = 2000


def build_tokenizer():
    """Build the word-level tokenizer.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        The tokenizer, which lowercases, and splits at spaces and punctuation.
    """
    ids = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    pad, bos, eos, unk = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        padding_side="right",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(tokenizer):
    """Build the untrained model.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast
        Gives the size of the vocabulary and the ids of the special tokens.

    Returns
    -------
    transformers.LlamaForCausalLM
        The model with random weights.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def train(model, tokenizer, steps, rng):
    """Train a model as a next-word predictor on all words of fresh random sentences.

    Parameters
    ----------
    model : transformers.LlamaForCausalLM
        The model, trained in place.
    tokenizer : transformers.PreTrainedTokenizerFast
        Its tokenizer.
    steps : int
        Number of batches.
    rng : random.Random
        Source of the sentences.
    """

    def loss_of_batch():
        texts = [item.text + tokenizer.eos_token for item in sentences(rng, BATCH_SIZE)]
        ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
        # No attention mask: padding is on the right, where causal attention hides it from all words.
        return model(input_ids=ids, labels=ids.masked_fill(ids == tokenizer.pad_token_id, -100)).loss

    fit(model, loss_of_batch, steps, LEARNING_RATE, weight_decay=0.1, max_norm=1.0)


@torch.no_grad()
def agreement_accuracy(model, tokenizer, items):
    """Measure how often the correct verb gets a higher logit than the wrong one.

    Parameters
    ----------
    model : transformers.LlamaForCausalLM
        The model in evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerFast
        Its tokenizer.
    items : list of agreement.Sentence
        The sentences.

    Returns
    -------
    float
        Share of the sentences for which the model prefers the correct verb.
    """
    ids = tokenizer([item.text for item in items], padding=True, return_tensors="pt").input_ids
    rows = range(len(items))
    # The tokenizer prepends one token: the verb's index among the words is that of the token before it.
    logits = model(input_ids=ids).logits[rows, [item.verb - 1 for item in items]]
    correct = tokenizer.convert_tokens_to_ids([item.correct for item in items])
    wrong = tokenizer.convert_tokens_to_ids([item.wrong for item in items])
    return (logits[rows, correct] > logits[rows, wrong]).float().mean().item()


def report(model, tokenizer, rng):
    """Print the held-out agreement accuracy, overall and for each number of attractors.

    Parameters
    ----------
    model : transformers.LlamaForCausalLM
        The model in evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerFast
        Its tokenizer.
    rng : random.Random
        Source of the sentences.
    """
    overall = agreement_accuracy(model, tokenizer, sentences(rng, EVALUATION_SIZE, held_out=True))
    print(f"held-out accuracy, all sentences: {overall:.4f}")
    for attractors in range(MAX_PHRASES + 1):
        items = sentences(rng, EVALUATION_SIZE, held_out=True, attractors=attractors)
        print(f"held-out accuracy, {attractors} attractors: {agreement_accuracy(model, tokenizer, items):.4f}")


def name_class(file):
    """Name the tokenizer's class as transformers 4 and 5 both know it."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main():
    """Train, evaluate and save the model."""
    args = options(__doc__, 3000, MODEL_PATH)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, args.steps, random.Random(args.seed))
    report(model.eval(), tokenizer, random.Random(args.seed + 1))
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    name_class(args.out / "tokenizer_config.json")


if __name__ == "__main__":
    main()
