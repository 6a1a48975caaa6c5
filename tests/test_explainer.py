"""Explainer: every task from what people have to relevance, by the calls of the attributor underneath."""

import json

import models
import numpy as np
import pytest
import readers
import timm
import torch
import torchvision
import transformers
from PIL import Image

from zennit_attn import AttnLRPComposite, Explainer, GammaViTComposite, InputXGradient, cli, targets
from zennit_attn.errors import InputError
from zennit_attn.explain.explainer import empty_model
from zennit_attn.explain.frames import frame_of
from zennit_attn.explain.tasks import TASKS, task_of
from zennit_attn.explain.wrapping import Similarity
from zennit_attn.rules import Gamma

BERT = {"vocab_size": 300, "hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
TEXT = "The capital of France is Paris."
LABELS = {0: "O", 1: "person", 2: "place"}
SMALL_IMAGE = {**models.IMAGE, "num_hidden_layers": 2}

pytestmark = pytest.mark.usefixtures("no_graph")


@pytest.fixture
def no_graph():
    """Let what a test computes by itself have no graph."""
    with torch.no_grad():
        yield


def bert(kind, **options):
    return models.scramble(kind(transformers.BertConfig(**BERT, **options))).eval()


def text_models():
    labelled = {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}
    llama = transformers.LlamaConfig(**{**models.SMALL, "vocab_size": 400}, num_hidden_layers=2)
    return {
        "next token": (models.scramble(transformers.LlamaForCausalLM(llama)), readers.byte_level(), [TEXT], "#7"),
        "masked token": (bert(transformers.BertForMaskedLM), readers.word_pieces(), ["Clara has a [MASK]."], "dog"),
        "text classification": (
            bert(transformers.BertForSequenceClassification, **labelled),
            readers.word_pieces(),
            [TEXT],
            "person",
        ),
        "token classification": (
            bert(transformers.BertForTokenClassification, **labelled),
            readers.word_pieces(),
            ["Clara has a dog in Paris"],
            ("Paris", "place"),
        ),
        "question answering": (
            bert(transformers.BertForQuestionAnswering),
            readers.word_pieces(),
            ["Who is Clara?", "Clara has a goat; Bob has a dog!"],
            "a goat",
        ),
        "similarity": (
            bert(transformers.BertModel, architectures=["BertModel"]),
            readers.word_pieces(),
            ["Clara has a dog", "Bob has a goat"],
            None,
        ),
    }


def vision(name):
    config = transformers.ViTConfig(**SMALL_IMAGE, num_labels=3, id2label={0: "cat, kitty", 1: "dog", 2: "hen"})
    if name == "image classification":
        return models.scramble(transformers.ViTForImageClassification(config)), readers.images(), "dog"
    if name == "semantic segmentation":
        sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16}
        config = transformers.SegformerConfig(**sizes, id2label={0: "wall", 1: "sky", 2: "tree"})
        return models.scramble(transformers.SegformerForSemanticSegmentation(config)), readers.images(64), None
    config = transformers.YolosConfig(
        **{**SMALL_IMAGE, "image_size": [32, 32]}, num_detection_tokens=5, id2label={0: "cat", 1: "dog"}
    )
    return models.scramble(transformers.YolosForObjectDetection(config)), readers.images(), "dog"


TEXT_TASKS = tuple(text_models())


@pytest.mark.parametrize("wants", [False, True], ids=["chosen", "asked"])
@pytest.mark.parametrize("name", TEXT_TASKS)
def test_texts(name, wants, tmp_path):
    model, tokenizer, given, target = text_models()[name]
    explanation = Explainer(model, tokenizer)(*given, target=target if wants else None)
    assert explanation.task == name
    for part, text in zip(explanation.parts, given if name == "similarity" else ["\n".join(given)], strict=True):
        assert part.text == text
        assert part.relevance.shape == (1, len(part.tokens))
        for unit in part.kinds():
            assert sum(explanation.by(unit, part=explanation.parts.index(part)).values()) == pytest.approx(
                float(part.relevance.sum()), abs=1e-6
            )
    explanation.save(tmp_path / "why.html")
    # what has no part: biases, positions, and what rules keep
    assert sum(explanation.shares().values()) == pytest.approx(explanation.value, abs=1e-5)
    assert np.abs(explanation.relevance).max() > 0


def test_a_next_token_is_what_the_attributor_gives():
    model, tokenizer, given, _ = text_models()["next token"]
    explanation = Explainer(model, tokenizer)(*given, target="#7", contrastive=True)
    batch = tokenizer(given[0], return_tensors="pt")
    output, relevance = InputXGradient(model, AttnLRPComposite())(batch, targets.Contrastive(7))
    torch.testing.assert_close(torch.from_numpy(explanation.matrix), relevance)
    (row,) = explanation.rows
    assert (row.index, row.label) == (7, tokenizer.decode([7]))
    logits = output.logits[0, -1].detach()
    assert row.logit == pytest.approx(float(logits[7]))
    assert row.value == pytest.approx(float(logits[7] - (logits.sum() - logits[7]) / 399), abs=1e-6)


def test_a_class_that_is_certain_has_its_name():
    model, tokenizer, given, _ = text_models()["text classification"]
    model.classifier.bias.copy_(torch.tensor([0.0, 500.0, 0.0]))
    explainer = Explainer(model, tokenizer)
    (row,) = explainer(*given, target=targets.LogProb()).rows
    assert (row.label, row.index, row.value) == ("person", 1, 0.0)
    assert row.logit == pytest.approx(float(model(**tokenizer(*given, return_tensors="pt")).logits[0, 1]), rel=1e-6)
    (row,) = explainer(*given, target=targets.LogProb(2)).rows
    assert (row.label, row.index) == ("place", 2)
    assert row.value == pytest.approx(row.logit - explainer(*given, target="person").rows[0].logit, rel=1e-6)


def test_a_masked_token_is_found_at_its_place():
    model, tokenizer, given, target = text_models()["masked token"]
    explanation = Explainer(model, tokenizer)(*given, target=target)
    batch = tokenizer(given[0], return_tensors="pt")
    place = (batch["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
    wanted = targets.Label(tokenizer.convert_tokens_to_ids(target), place)
    _, relevance = InputXGradient(model, AttnLRPComposite())(batch, wanted)
    torch.testing.assert_close(torch.from_numpy(explanation.matrix), relevance)
    with pytest.raises(InputError, match=r"got 0 times \[MASK\]"):
        Explainer(model, tokenizer)("no mask")


def test_a_label_of_a_token_by_word():
    model, tokenizer, given, (word, label) = text_models()["token classification"]
    explanation = Explainer(model, tokenizer)(*given, target=(word, label))
    assert explanation.label == f"{label}: {word}"
    place = explanation.tokens.index(f" {word}")
    batch = tokenizer(given[0], return_tensors="pt")
    _, relevance = InputXGradient(model, AttnLRPComposite())(batch, targets.Label(2, place))
    torch.testing.assert_close(torch.from_numpy(explanation.matrix), relevance)
    # what the model chose is never nothing
    assert Explainer(model, tokenizer)(*given).label.split(":")[0] in ("person", "place")
    with pytest.raises(InputError, match="nearest: 'Paris'"):
        Explainer(model, tokenizer)(*given, target=("Pari", label))


def test_an_answer_in_a_text_is_its_first_and_last_token():
    model, tokenizer, given, target = text_models()["question answering"]
    explanation = Explainer(model, tokenizer)(*given, target=target)
    assert explanation.label == target
    batch = tokenizer(*given, return_tensors="pt")
    first, last = (explanation.tokens.index(word) for word in (" a", " goat"))
    output = model(**batch)
    total = output.start_logits[0, first] + output.end_logits[0, last]
    assert explanation.value == pytest.approx(float(total), rel=1e-5)
    start = len("Clara has ")
    again = Explainer(model, tokenizer)(*given, target=(start, start + len(target)))
    np.testing.assert_array_equal(again.matrix, explanation.matrix)
    # the model's own answer is in the text, not in the question
    assert Explainer(model, tokenizer)(*given).label in given[1]


def test_an_answer_in_a_text_of_a_tokenizer_without_places():
    model = models.scramble(
        transformers.BertForQuestionAnswering(transformers.BertConfig(**{**BERT, "vocab_size": 384}))
    )
    tokenizer = transformers.ByT5Tokenizer()
    # its tokens are more than its letters
    question, text = "À l'été, où était née Clara", "Clara has a goat"
    explainer = Explainer(model, tokenizer)
    explanation = explainer(question, text, target="Clara")
    ids = tokenizer(question, text, return_tensors="pt")["input_ids"]
    # a byte is a token, and one ends the question
    first = len(question.encode()) + 1
    output = model(ids)
    expected = output.start_logits[0, first] + output.end_logits[0, first + len("Clara") - 1]
    assert explanation.value == pytest.approx(float(expected), rel=1e-5)
    # what ends the text is no answer, however sure
    model.qa_outputs.bias.zero_()
    assert "</s>" not in explainer(question, text).label
    with pytest.raises(InputError, match="expected the words, or a fast tokenizer"):
        explainer(question, text, target=(0, 5))


def test_similarity_is_the_cosine_of_two_texts():
    model, tokenizer, given, _ = text_models()["similarity"]
    explanation = Explainer(model, tokenizer)(*given)
    states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1) for text in given]
    assert explanation.value == pytest.approx(float(torch.cosine_similarity(*states)), abs=1e-6)
    one, other = (tokenizer(text, return_tensors="pt") for text in given)
    batch = {
        "input_ids": one["input_ids"], "attention_mask": one["attention_mask"],
        "other_ids": other["input_ids"], "other_mask": other["attention_mask"],
    }  # fmt: skip
    attributor = InputXGradient(Similarity(model), AttnLRPComposite(), argument=("input_ids", "other_ids"))
    _, relevance = attributor(batch, targets.MaxLogit())
    for part, name in zip(explanation.parts, relevance, strict=True):
        torch.testing.assert_close(torch.from_numpy(part.relevance), relevance[name])


@pytest.mark.parametrize("name", ["question answering", "similarity"])
def test_modules_keep_the_names_that_they_have_in_the_model(name, tmp_path, capsys):
    model, tokenizer, given, _ = text_models()[name]
    pattern = "bert.encoder.*.dense" if name == "question answering" else "encoder.*.dense"
    gamma = AttnLRPComposite(name_map=[(pattern, Gamma(1.0))])
    explanation = Explainer(model, tokenizer, composite=gamma)(*given)
    plain = Explainer(model, tokenizer)(*given)
    assert explanation.value == pytest.approx(plain.value, abs=1e-6)
    assert np.abs(explanation.matrix - plain.matrix).max() > 1e-3 * np.abs(plain.matrix).max()
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path)
    assert cli.main(["describe", "--model", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "encoder.layer" in out
    assert "model." not in out
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(InputError, match="expected 'sdpa' or 'eager'"):
        Explainer(model, tokenizer)


@pytest.mark.parametrize("name", ["image classification", "semantic segmentation", "object detection"])
def test_images(name):
    model, processor, target = vision(name)
    explainer = Explainer(model.eval(), processor)
    for wanted in (None, target):
        explanation = explainer(readers.photo(), target=wanted)
        (part,) = explanation.parts
        assert part.relevance.shape == (1, *part.pixels.shape[1:])
        assert np.abs(part.relevance).max() > 0
        assert sum(explanation.shares().values()) == pytest.approx(explanation.value, abs=1e-4)
    assert explanation.picture() is not None


def test_a_class_has_synonyms_and_a_nearest_name():
    model, processor, _ = vision("image classification")
    explainer = Explainer(model.eval(), processor)
    assert explainer(readers.photo(), target="kitty").rows[0].index == 0
    with pytest.raises(InputError, match="nearest: 'dog'"):
        explainer(readers.photo(), target="dgo")
    with pytest.raises(InputError, match="expected an image"):
        explainer("what is this?")


def test_a_region_of_a_segmentation_is_a_box_or_a_pixel():
    model, processor, _ = vision("semantic segmentation")
    explainer = Explainer(model.eval(), processor)
    image = Image.fromarray(readers.photo(64)[:, :64])
    everywhere = explainer(image, target=("sky", (0, 0, 64, 64)))
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    logits = model(pixels).logits.detach()
    assert everywhere.value == pytest.approx(float(logits[0, 1].sum()), rel=1e-4)
    one = explainer(image, target=("sky", (20, 30)))
    scale = logits.shape[-1] / 64
    assert one.value == pytest.approx(float(logits[0, 1, int(30 * scale), int(20 * scale)]), rel=1e-4)


def test_an_object_by_class_and_query():
    model, processor, _ = vision("object detection")
    explainer = Explainer(model.eval(), processor)
    explanation = explainer(readers.photo(), target=("dog", 3))
    assert explanation.label == "dog (query 3)"
    pixels = processor(images=readers.photo(), return_tensors="pt")["pixel_values"]
    assert explanation.value == pytest.approx(float(model(pixels).logits[0, 3, 1]), rel=1e-4)
    # the image that was given is 50 wide and 40 high
    x, y, width, height = (model(pixels).pred_boxes[0, 2] * torch.tensor([50, 40, 50, 40])).tolist()
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    assert explainer(readers.photo(), target=("dog", box)).label == "dog (query 2)"
    with pytest.raises(InputError, match="sees nothing"):
        explainer(readers.photo(), target=("dog", (900, 900, 910, 910)))


def test_classes_of_objects_may_have_gaps():
    config = transformers.YolosConfig(
        **{**SMALL_IMAGE, "image_size": [32, 32]}, num_detection_tokens=5, id2label={1: "cat", 3: "dog"}
    )
    model = models.scramble(transformers.YolosForObjectDetection(config)).eval()
    # classes 0 to 3, and that there is no object
    model.class_labels_classifier.layers[-1] = torch.nn.Linear(SMALL_IMAGE["hidden_size"], 5)
    model.class_labels_classifier.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 50.0, 90.0]))
    assert Explainer(model, readers.images())(readers.photo()).label.startswith("dog (query")


@pytest.mark.parametrize(
    ("processor", "edges", "seen"),
    [
        (lambda: readers.images(64), (0, 0, 64, 64), (64, 64)),
        # the shortest edge of 40 becomes 32, then 24 of it and 40 columns are kept
        (lambda: readers.clip_images(32, 24), (-8, -4, 32, 28), (24, 24)),
        # the longest edge of 50 becomes 64, and 51.2 rows a multiple of 16; the padding is on the right and below
        (
            lambda: transformers.YolosImageProcessor(
                size={"longest_edge": 64, "shortest_edge": 800}, pad_size={"height": 64, "width": 96}
            ),
            (0, 0, 64, 48),
            (64, 96),
        ),
    ],
    ids=["resized", "cropped", "padded"],
)
def test_where_an_image_is_in_what_a_model_sees(processor, edges, seen):
    explainer = Explainer(vision("semantic segmentation")[0].eval(), processor())
    frame = frame_of(explainer, (40, 50))
    assert ((frame.left, frame.top, frame.right, frame.bottom), frame.seen) == (edges, seen)
    # a black pixel is where it says
    pixels = np.full((40, 50, 3), 255, np.uint8)
    pixels[18:22, 23:27] = 0
    found = explainer.reader(images=pixels, return_tensors="pt", do_normalize=False)["pixel_values"][0].mean(0)
    left, top, right, bottom = frame.of((23, 18, 27, 22))
    assert found[int((top + bottom) / 2 * seen[0]), int((left + right) / 2 * seen[1])] < 0.3


def test_a_region_of_a_cropped_image_is_where_it_was_given():
    model, _, _ = vision("semantic segmentation")
    explainer = Explainer(model.eval(), readers.clip_images(64, 32))
    image = Image.fromarray(readers.photo(64)[:, :64])
    # of 64 columns and rows 16 to 48 are seen, by 8 cells
    logits = model(explainer.read_images(image)["pixel_values"]).logits[0]
    explanation = explainer(image, target=("sky", (20, 24, 28, 28)))
    assert logits.shape[1:] == (8, 8)
    assert explanation.value == pytest.approx(float(logits[1, 2:3, 1:3].sum()), rel=1e-4)
    with pytest.raises(InputError, match="sees nothing"):
        explainer(image, target=("sky", (3, 3)))


def test_places_that_are_not_known_are_refused():
    class Turned(transformers.ViTImageProcessor):
        def __call__(self, *given, **options):
            found = super().__call__(*given, **options)
            found["pixel_values"] = found["pixel_values"].flip(-1)
            return found

    model, _, _ = vision("semantic segmentation")
    explainer = Explainer(model.eval(), Turned(size={"height": 64, "width": 64}))
    with pytest.raises(InputError, match="Turned does more"):
        explainer(readers.photo(), target=("sky", (3, 3)))
    model, _, _ = vision("object detection")
    pads = transformers.YolosImageProcessor(
        size={"longest_edge": 32, "shortest_edge": 800}, pad_size={"height": 32, "width": 32}
    )
    with pytest.raises(InputError, match="which pads"):
        Explainer(model.eval(), pads)(readers.photo(), target=("dog", (3, 3, 9, 9)))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_models_of_timm_and_torchvision(library):
    def transform(image):
        pixels = torchvision.transforms.functional.pil_to_tensor(image.resize((32, 32))).float()
        return pixels / 255 - 0.5

    model = getattr(models, f"{library}_vit")().eval()
    explanation = Explainer(model, transform, labels=[f"class {index}" for index in range(10)])(
        readers.photo(), target="class 3"
    )
    pixels = transform(Image.fromarray(readers.photo()))[None]
    _, relevance = InputXGradient(model, GammaViTComposite())(pixels, targets.Label(3))
    torch.testing.assert_close(torch.from_numpy(explanation.matrix), relevance.sum(1))
    assert explanation.label == "class 3"


def test_models_by_name(tmp_path):
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "timm.pth")
    explainer = Explainer(f"timm:vit_tiny_patch16_224@{tmp_path / 'timm.pth'}")
    assert explainer.task.name == "image classification"
    assert explainer(readers.photo()).matrix.shape == (1, 224, 224)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "torchvision.pth")
    explainer = Explainer(f"torchvision:squeezenet1_1@{tmp_path / 'torchvision.pth'}", composite="attnlrp")
    # torchvision names its classes
    assert explainer(readers.photo(300), target="tabby").rows[0].index == 281
    for name, message in (
        ("timm:vit_tny_patch16_224", "nearest"),
        ("torchvision:vit_b_61", "nearest: 'vit_b_16'"),
        (f"torchvision:squeezenet1_0@{tmp_path / 'timm.pth'}", "cannot load 'squeezenet1_0'"),
    ):
        with pytest.raises(InputError, match=message):
            Explainer(name)


def test_checkpoints_of_timm_on_the_hub(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    # as the checkpoints on the hub have none
    config.pop("model_args", None)
    assert "architectures" not in config
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    explainer = Explainer(tmp_path)
    assert type(explainer.model).__name__ == "TimmWrapperForImageClassification"
    assert explainer(readers.photo()).matrix.shape == (1, 224, 224)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_16"])
def test_models_without_weights_are_described(name, capsys):
    assert cli.main(["describe", "--model", name]) == 0
    assert "patch_embedding" in capsys.readouterr().out


def test_zero_shot_classification_shares_out_among_image_and_text(tmp_path):
    text = {**models.SMALL, "vocab_size": 300, "num_hidden_layers": 2, "bos_token_id": 2, "eos_token_id": 3}
    config = transformers.CLIPConfig(text_config=text, vision_config=SMALL_IMAGE, projection_dim=24)
    model = models.scramble(transformers.CLIPModel(config)).eval()
    processor = transformers.CLIPProcessor(
        image_processor=readers.clip_images(),
        tokenizer=readers.word_pieces(),
    )
    labels = ["a dog", "a goat in Rome"]
    explanation = Explainer(model, processor)(readers.photo(), labels, target="a goat in Rome")
    image, words = explanation.parts
    assert explanation.label == "a goat in Rome"
    assert words.text.split()[1:-1] == "a goat in Rome".split()
    assert sum(explanation.shares().values()) == pytest.approx(explanation.value, abs=1e-4)
    assert np.abs(image.relevance).max() > 0
    assert np.abs(words.relevance).max() > 0
    explanation.save(tmp_path / "clip.png")
    explanation.save(tmp_path / "clip.html")
    with pytest.raises(InputError, match="nearest"):
        Explainer(model, processor)(readers.photo(), labels, target="a dgo")


def test_zero_shot_labels_may_be_padded_on_the_left():
    text = {**models.SMALL, "vocab_size": 300, "num_hidden_layers": 1, "bos_token_id": 2, "eos_token_id": 3}
    config = transformers.CLIPConfig(text_config=text, vision_config=SMALL_IMAGE, projection_dim=24)
    tokenizer = readers.word_pieces()
    tokenizer.padding_side = "left"
    processor = transformers.CLIPProcessor(image_processor=readers.clip_images(), tokenizer=tokenizer)
    model = models.scramble(transformers.CLIPModel(config)).eval()
    labels = ["a dog", "a goat in Rome, and a dog"]
    explanation = Explainer(model, processor)(readers.photo(), labels, target="a dog")
    _, words = explanation.parts
    assert words.text.split() == ["[CLS]", "a", "dog", "[SEP]"]
    batch = processor(text=labels, images=readers.photo(), return_tensors="pt", padding=True)
    attributor = InputXGradient(model, AttnLRPComposite(), argument=("pixel_values", "input_ids"))
    _, relevance = attributor(batch, targets.Label(0))
    torch.testing.assert_close(torch.from_numpy(words.relevance), relevance["input_ids"][:1, -4:])


def test_texts_of_siglip_are_filled_up_as_in_its_training():
    text = {**models.SMALL, "vocab_size": 300, "num_hidden_layers": 1, "max_position_embeddings": 12}
    text |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = transformers.SiglipConfig(text_config=text, vision_config={**SMALL_IMAGE, "num_hidden_layers": 1})
    model = models.scramble(transformers.SiglipModel(config)).eval()
    tokenizer = readers.word_pieces()
    processor = transformers.SiglipProcessor(image_processor=readers.clip_images(), tokenizer=tokenizer)
    labels = ["a dog", "a goat in Rome"]
    explanation = Explainer(model, processor)(readers.photo(), labels, target="a dog")
    ids = tokenizer(labels, padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    pixels = processor.image_processor(readers.photo(), return_tensors="pt")["pixel_values"]
    expected = model(input_ids=ids, pixel_values=pixels).logits_per_image[0, 0]
    assert explanation.value == pytest.approx(float(expected), rel=1e-5)
    # what it is filled up with is read, too
    _, words = explanation.parts
    assert words.relevance.shape == (1, 12)
    assert sum(explanation.shares().values()) == pytest.approx(explanation.value, abs=1e-4)
    with pytest.raises(InputError, match="at most 12"):
        Explainer(model, processor)(readers.photo(), ["a dog " * 12])


def test_audio(tmp_path):
    config = transformers.Wav2Vec2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_dim=(16, 16),
        conv_kernel=(10, 3), conv_stride=(5, 2), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2, classifier_proj_size=8, id2label={0: "dog", 1: "cat"},
    )  # fmt: skip
    model = models.scramble(transformers.Wav2Vec2ForSequenceClassification(config)).eval()
    samples = np.random.default_rng(0).standard_normal(1600).astype(np.float32)
    explanation = Explainer(model, transformers.Wav2Vec2FeatureExtractor())(samples, target="cat")
    (part,) = explanation.parts
    assert (part.rate, part.relevance.shape) == (16000, (1, 1, 1600))
    explanation.save(tmp_path / "audio.png")
    assert sum(explanation.shares().values()) == pytest.approx(explanation.value, abs=1e-4)


def test_series(tmp_path, capsys):
    sizes = {"d_model": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "ffn_dim": 32, "patch_length": 4}
    config = {**sizes, "context_length": 32, "patch_stride": 4, "num_input_channels": 2, "prediction_length": 6}
    config = transformers.PatchTSTConfig(**config, norm_type="layernorm", use_cls_token=True)
    model = models.scramble(transformers.PatchTSTForPrediction(config)).eval()
    series = np.cumsum(np.random.default_rng(0).standard_normal((32, 2)), 0)
    explanation = Explainer(model)(series, target=(-1, 1))
    assert explanation.parts[0].relevance.shape == (1, 2, 32)
    explanation.save(tmp_path / "series.png")
    forecast = model(torch.tensor(series, dtype=torch.float32)[None]).prediction_outputs
    assert explanation.value == pytest.approx(float(forecast[0, -1, 1]), rel=1e-4)
    with pytest.raises(InputError, match=r"expected \(32, 2\)"):
        Explainer(model)(series[:10])
    model.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "x.npy", series)
    np.savetxt(tmp_path / "x.csv", series, delimiter=",")
    found = []
    for name in ("x.npy", "x.csv"):
        options = ["--model", tmp_path / "model", "--series", tmp_path / name, "--out", tmp_path / "x.png", "--json"]
        assert cli.main(["explain", *map(str, options)]) == 0
        found.append(json.loads(capsys.readouterr().out)["relevance"])
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        transformers.BertConfig(**BERT, architectures=["BertForMaskedLM"]),
        transformers.BertConfig(**BERT, architectures=["BertForQuestionAnswering"]),
        transformers.BertConfig(**BERT, architectures=["BertModel"]),
        transformers.CLIPConfig(architectures=["CLIPModel"]),
        transformers.WhisperConfig(architectures=["WhisperForConditionalGeneration"]),
        transformers.PatchTSTConfig(architectures=["PatchTSTForPrediction"]),
        transformers.T5Config(architectures=["T5ForConditionalGeneration"]),
    ],
    ids=lambda config: config.architectures[0],
)
def test_models_of_every_task_are_described(config, tmp_path, capsys):
    config.save_pretrained(tmp_path)
    assert cli.main(["describe", "--model", str(tmp_path)]) == 0
    assert "Epsilon" in capsys.readouterr().out


def test_shown_in_a_notebook():
    model, tokenizer, given, _ = text_models()["next token"]
    explanation = Explainer(model, tokenizer)(*given)
    assert "capital" in explanation._repr_html_()
    assert repr(explanation).startswith("Explanation(next token of ")


@pytest.mark.parametrize("place", [(6, 0), (63, 63), (62, 1)])
def test_a_pixel_is_in_one_cell(place):
    model, processor, _ = vision("semantic segmentation")
    explainer = Explainer(model.eval(), processor)
    image = Image.fromarray(readers.photo(64)[:, :64])
    logits = model(processor(images=image, return_tensors="pt")["pixel_values"]).logits
    x, y = (side * logits.shape[-1] // 64 for side in place)
    explanation = explainer(image, target=("sky", place))
    assert explanation.value == pytest.approx(float(logits[0, 1, y, x]), rel=1e-4)


def test_the_same_image_in_every_form(tmp_path):
    model, processor, _ = vision("image classification")
    explainer = Explainer(model.eval(), processor)
    pixels = readers.photo()
    expected = explainer(pixels, target=1).value
    Image.fromarray(pixels).save(tmp_path / "x.png")
    first = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [str(tmp_path / "x.png"), Image.fromarray(pixels), first, first.long(), pixels.astype(int), pixels / 255]
    for form in [*forms, (first / 255).float(), np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])]:
        assert explainer(form, target=np.int64(1)).value == pytest.approx(expected, abs=1e-3)
    grey = pixels[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert explainer(tmp_path / "deep.png").value == pytest.approx(explainer(grey).value, abs=1e-3)
    for form in (pixels.astype(np.float32), pixels[None], pixels[..., :2], np.zeros((0, 3), np.uint8)):
        with pytest.raises(InputError, match="expected integers from 0"):
            explainer(form)


def test_numbers_of_numpy_and_torch_are_numbers():
    model, tokenizer, given, _ = text_models()["next token"]
    explainer = Explainer(model, tokenizer)
    for number in (8, np.int64(8), torch.tensor(8)):
        assert explainer(*given, target=number).rows[0].index == 8
    for number in (-1, 10_000):
        with pytest.raises(InputError, match="expected a token from 0 to"):
            explainer(*given, target=number)


def test_an_encoder_that_pools_otherwise_is_refused(tmp_path):
    model, tokenizer, given, _ = text_models()["similarity"]
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    for mean in (True, False):
        modes = {"word_embedding_dimension": 24, "pooling_mode_cls_token": not mean, "pooling_mode_mean_tokens": mean}
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(modes), encoding="utf-8")
        if mean:
            assert Explainer(tmp_path)(*given).task == "similarity"
        else:
            with pytest.raises(InputError, match="with pooling_mode_cls_token"):
                Explainer(tmp_path)
    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    modules = [{"idx": index, "type": f"sentence_transformers.models.{kind}"} for index, kind in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(InputError, match="with Dense after its encoder"):
        Explainer(tmp_path)


def test_an_encoder_of_a_model_with_a_decoder_is_loaded_as_what_it_is(tmp_path):
    config = {"vocab_size": 300, "d_model": 24, "d_kv": 12, "d_ff": 48, "num_layers": 1, "num_heads": 2}
    model = models.scramble(transformers.T5EncoderModel(transformers.T5Config(**config)))
    tokenizer = readers.word_pieces()
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path)
    explainer = Explainer(tmp_path)
    assert type(explainer.model) is transformers.T5EncoderModel
    given = ["Clara has a dog", "Bob has a goat"]
    expected = Explainer(model, tokenizer)(*given)
    torch.testing.assert_close(explainer(*given).matrix, expected.matrix)
    assert type(empty_model(str(tmp_path))[0].model) is transformers.T5EncoderModel


def test_what_is_not_known_is_said():
    with pytest.raises(InputError, match="without a reader, expected its AutoTokenizer"):
        Explainer(text_models()["next token"][0])
    with pytest.raises(InputError, match="expected one for image and text to text, speech to text"):
        Explainer(transformers.BertForNextSentencePrediction(transformers.BertConfig(**BERT)), readers.word_pieces())
    assert len({task.name for task in TASKS}) == len(TASKS)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("BartForConditionalGeneration", "text to text"),
        ("Gemma3ForConditionalGeneration", "image and text to text"),
        ("WhisperForConditionalGeneration", "speech to text"),
        ("Qwen2ForCausalLM", "next token"),
        ("RobertaForMaskedLM", "masked token"),
        ("MPNetModel", "similarity"),
        ("SiglipModel", "zero-shot image classification"),
        ("DetrForObjectDetection", "object detection"),
    ],
)
def test_what_sees_or_hears_comes_before_what_reads_alone(architecture, name):
    assert task_of(architecture, "it").name == name


def test_models_of_two_tokenizers_stand_side_by_side():
    one, other = (
        Explainer(model, tokenizer)(*given)
        for model, tokenizer, given, _ in (text_models()[name] for name in ("next token", "text classification"))
    )
    assert one.tokens != other.tokens
    picture = one.beside(other, names=["Llama", "BERT"])
    assert "Llama: The capital of France is Paris ." in str(picture)
    letters = {letter: (place, place + 1) for place, letter in enumerate("ABCD")}
    assert one.beside(other, unit=letters) is not None


def test_a_reranker_reads_a_pair():
    model = bert(transformers.BertForSequenceClassification, num_labels=1)
    tokenizer = readers.word_pieces()
    explanation = Explainer(model, tokenizer)("Who is Clara?", "Clara has a goat")
    batch = tokenizer("Who is Clara?", "Clara has a goat", return_tensors="pt")
    assert explanation.value == pytest.approx(float(model(**batch).logits[0, 0]), abs=1e-6)
    _, relevance = InputXGradient(model, AttnLRPComposite())(batch, targets.Label(0))
    torch.testing.assert_close(torch.from_numpy(explanation.matrix), relevance)
    shares = explanation.by("part")
    assert list(shares) == ["[CLS]", "first", "[SEP]", "second", "[SEP]#2"]
    assert sum(shares.values()) == pytest.approx(float(relevance.sum()), abs=1e-6)


def test_a_spectrogram_is_shown_as_it_sounds():
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.ASTConfig(
        **sizes, patch_size=8, frequency_stride=8, time_stride=8, max_length=64, num_mel_bins=32
    )
    model = models.scramble(transformers.ASTForAudioClassification(config)).eval()
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64)
    samples = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    explanation = Explainer(model, extractor)(samples)
    (part,) = explanation.parts
    # bands by frames
    assert part.relevance.shape == (1, 32, 64)
    features = extractor(samples, sampling_rate=16000, return_tensors="pt")["input_values"]
    np.testing.assert_array_equal(part.values, features[0].T)
    _, relevance = InputXGradient(model, AttnLRPComposite())({"input_values": features}, targets.MaxLogit())
    torch.testing.assert_close(torch.from_numpy(explanation.matrix), relevance.transpose(1, 2))


def test_a_class_of_a_series():
    sizes = {"d_model": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "ffn_dim": 32, "patch_length": 4}
    config = {**sizes, "context_length": 32, "patch_stride": 4, "num_input_channels": 2, "num_targets": 3}
    model = transformers.PatchTSTForClassification(
        transformers.PatchTSTConfig(**config, norm_type="layernorm", use_cls_token=True)
    )
    series = np.cumsum(np.random.default_rng(0).standard_normal((32, 2)), 0).astype(np.float32)
    explanation = Explainer(models.scramble(model).eval(), labels=["calm", "rising", "falling"])(
        series, target="rising"
    )
    logits = model(torch.from_numpy(series)[None]).prediction_logits
    assert (explanation.label, explanation.value) == ("rising", pytest.approx(float(logits[0, 1]), abs=1e-6))
    assert explanation.matrix.shape == (1, 2, 32)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "layers"])
def test_a_model_that_was_compiled_before_is_asked_as_it_was_written(whole):
    model, tokenizer, given, _ = text_models()["next token"]
    expected = Explainer(model, tokenizer)(*given)
    if whole:
        compiled = torch.compile(model, backend="eager")
    else:
        compiled = model
        for layer in model.model.layers:
            layer.compile(backend="eager")
    found = Explainer(compiled, tokenizer)(*given)
    assert found.label == expected.label
    np.testing.assert_array_equal(found.relevance, expected.relevance)
