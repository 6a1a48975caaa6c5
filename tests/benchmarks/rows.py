"""Measure how many rows a second are explained: one by one with a picture each, and by ``zennit-attn explain --input``.

``python tests/benchmarks/rows.py`` takes a good half hour and prints tables in Markdown: rows per second of processor
time of one process, of one and two processes at once, and memory and the time to go on for more and more rows. The
models are random, because weights do not matter for speed: a BERT of 6 layers of 384 units and a Llama of 4 of 64, both
of 30 000 words; the texts have 3 to 200 words.
"""

import argparse
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = 30_000
COMMAND = "import sys; from zennit_attn.cli import main; sys.exit(main(sys.argv[1:]))"


def tokenizer():
    """Return a tokenizer of 30 000 words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(WORDS))]
    made = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def models(folder):
    """Write the models, and return their folders by name."""
    import transformers

    reader = tokenizer()
    bert = transformers.BertConfig(
        vocab_size=len(reader), hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    llama = transformers.LlamaConfig(
        vocab_size=len(reader), hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256
    )
    made = {
        "BERT 6×384": transformers.BertForSequenceClassification(bert),
        "Llama 4×64": transformers.LlamaForCausalLM(llama),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        reader.save_pretrained(folder / name)
    return {name: folder / name for name in made}


def texts(count, longest=200):
    """Return texts of 3 to 200 words."""
    chance = random.Random(0)
    return [" ".join(f"w{chance.randrange(WORDS)}" for _ in range(chance.randint(3, longest))) for _ in range(count)]


def written(folder, rows):
    """Write texts as JSON lines, and return the file."""
    file = folder / f"{len(rows)}.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return file


def one_by_one(model, rows, folder):
    """Explain texts one by one, as the command did before, and return the processor time of a row."""
    from zennit_attn import Explainer

    explainer = Explainer(str(model))
    explainer(rows[0]).picture().save(folder / "warm.html")
    start = time.process_time()
    for number, text in enumerate(rows):
        explainer(text).picture().save(folder / f"{number}.html")
    return (time.process_time() - start) / len(rows)


def by_command(model, file, out):
    """Explain a file in this process, and return the processor time of a row."""
    from zennit_attn.cli import main

    # what is loaded once is not of a row
    few = written(out.parent, texts(8))
    with contextlib.redirect_stdout(io.StringIO()):
        main(["explain", "--model", str(model), "--input", str(few), "--out", f"{out} few"])
        start = time.process_time()
        main(["explain", "--model", str(model), "--input", str(few), "--out", f"{out} few again"])
        once = time.process_time() - start
        start = time.process_time()
        main(["explain", "--model", str(model), "--input", str(file), "--out", str(out)])
    count = sum(1 for _ in file.open())
    return (time.process_time() - start - once) / (count - 8)


def processes(model, file, out, count):
    """Explain a file by several processes that share a folder, and return the seconds that it takes."""
    command = [sys.executable, "-c", COMMAND, "explain", "--model", str(model), "--input", str(file), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    running = [
        subprocess.Popen([*command, "--rows-per-part", "64"], env=environment, stdout=subprocess.DEVNULL)
        for _ in range(count)
    ]
    for process in running:
        assert process.wait() == 0
    return time.perf_counter() - start


def growth(model, folder, counts):
    """Yield rows, the largest memory in MiB, the seconds to make them, and those to find that all is there."""
    program = (
        "import json, resource, sys, time\nfrom zennit_attn.cli import main\nfound = []\n"
        "for _ in range(2):\n"
        "    start = time.perf_counter()\n    assert main(sys.argv[1:]) == 0\n"
        "    found.append(time.perf_counter() - start)\n"
        "print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, *found]))"
    )
    for count in counts:
        file = written(folder, texts(count, 12))
        command = [sys.executable, "-c", program, "explain", "--model", str(model), "--input", str(file), "--json"]
        command += ["--out", str(folder / f"out {count}")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        yield count, *json.loads(said.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--shared", type=int, default=3000, help="rows that two processes share (default: %(default)s)")
    parser.add_argument("--growth", type=int, nargs="*", default=[1000, 10_000, 100_000])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = texts(args.rows)
        file, shared = written(folder, rows), written(folder, texts(args.shared))
        made = models(folder)
        print("| model | one by one | `--input` | times | one process | two | times |\n| --- |" + " ---: |" * 6)
        for number, (title, model) in enumerate(made.items()):
            single = one_by_one(model, rows[: len(rows) // 4], folder)
            many = by_command(model, file, folder / f"out {number}")
            alone, both = (processes(model, shared, folder / f"out {number} {count}", count) for count in (1, 2))
            print(
                f"| {title} | {1 / single:.1f} | {1 / many:.1f} | {single / many:.1f} | {alone:.0f} s | {both:.0f} s "
                f"| {alone / both:.2f} |",
                flush=True,
            )
        print("\n| rows | MiB | seconds | to find all there |\n| ---: | ---: | ---: | ---: |")
        for count, memory, seconds, again in growth(made["Llama 4×64"], folder, args.growth):
            print(f"| {count} | {memory:.0f} | {seconds:.0f} | {again:.2f} |", flush=True)


if __name__ == "__main__":
    main()
