"""Compare the speed of our PairRM and llm_blender's on the same random checkpoint and texts, after checking the logits.

    python benchmarks/pairrm.py [--prompts 8] [--answers 4] [--repeats 5] [--threads 1] [--hidden 256] [--layers 4]

llm_blender 0.0.2 runs with the two shims that transformers 5 requires, at batch size 1 (as in SPPO's scripts) and 8
(its default). Weights are random, in the shape of a small DeBERTa-v3. Text lengths are log-normal, all texts differ
and none is cut. The variants alternate, so that other load on the machine slows all of them; CPU seconds are printed
beside wall-clock seconds because other load changes them less.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import string
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import DebertaV2Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors.scorers.base import Scorer
from actors.scorers.builtin import build_scorer
from actors.scorers.pairrm.training import new_pairrm
from engine.config.scorer import BlenderConfig, PairRMConfig, ScorerConfig
from engine.schema import COMPLETIONS, NO_DATASET_COMPLETIONS

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "nrst"]
TOLERANCE = 1e-4


def save_checkpoint(folder: str, hidden: int, layers: int) -> None:
    """Save a random PairRM with DeBERTa-v3's position buckets and with logits far from 0."""
    vocab = [(token, 0.0) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    vocab += [("▁" + word, -3.0) for word in WORDS] + [(c, -6.0) for c in string.ascii_letters + "▁"]
    tokenizer = DebertaV2Tokenizer(vocab=vocab)
    model = new_pairrm(tokenizer, hidden_size=hidden, num_layers=layers, num_heads=hidden // 64, position_buckets=256)
    with torch.no_grad():
        for layer in (model.head_layer[1], model.head_layer[4]):
            layer.weight.mul_(10)
    model.save(folder)


def completions(num_prompts: int, num_answers: int) -> pa.Table:
    """Prompts of about 60 and answers of about 150 tokens (medians), at most 400."""
    rng = np.random.default_rng(0)

    def text(median: float) -> str:
        return " ".join(rng.choice(WORDS, size=int(np.clip(rng.lognormal(np.log(median), 0.7), 5, 400))))

    def row(number: int) -> dict:
        prompt = text(60)
        return {
            "prompt_id": f"p{number}",
            "messages": [{"role": "user", "content": prompt}],
            "prompt_text": prompt,
            "prompt_token_ids": [],
            **NO_DATASET_COMPLETIONS,
            "completions": [text(150) for _ in range(num_answers)],
            "completion_token_ids": [[]] * num_answers,
            "completion_logps": [0.0] * num_answers,
            "finish_reasons": ["stop"] * num_answers,
            "seeds": [0] * num_answers,
            "weights": "",
            "num_from_policy": num_answers,
        }

    return pa.Table.from_pylist([row(number) for number in range(num_prompts)], COMPLETIONS)


def started(config: ScorerConfig) -> Scorer:
    scorer = build_scorer(config)
    with contextlib.redirect_stdout(io.StringIO()):
        scorer.start()
    return scorer


def logits(scorer: Scorer, table: pa.Table) -> np.ndarray:
    return np.array(scorer.score(table)["pair_logits"].to_pylist())


def assert_equal(scorers: dict[str, Scorer], table: pa.Table) -> None:
    """Check that all variants agree on every logit and on every ranking."""
    results = {name: logits(scorer, table) for name, scorer in scorers.items()}
    ours = results.pop("kumite")
    for name, theirs in results.items():
        difference = np.abs(ours - theirs).max()
        ranks = [(m - m.transpose(0, 2, 1)).mean(axis=2).argsort(axis=1) for m in (ours, theirs)]
        assert difference <= TOLERANCE and (ranks[0] == ranks[1]).all(), (name, difference)
        print(f"{name}: max |difference| {difference:.1e} of logits up to {np.abs(theirs).max():.2f}, same ranks")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def sgemm_ceiling() -> float:
    """GFLOP per CPU second of a 2048^3 float32 product: an upper bound for this machine."""
    a, b = torch.rand(2, 2048, 2048)
    return 2 * 2048**3 / min(timed(lambda: a @ b)[1] for _ in range(3)) / 1e9


def spread(values: list[float]) -> str:
    return f"{np.median(values):.2f} (min {min(values):.2f}, max {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"prompts": 8, "answers": 4, "repeats": 5, "threads": 1, "hidden": 256, "layers": 4}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = completions(options.prompts, options.answers)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, options.hidden, options.layers)
        scorers = {
            "kumite": started(PairRMConfig(path=folder)),
            "llm_blender, batch 1": started(BlenderConfig(path=folder, batch_size=1)),
            "llm_blender, batch 8": started(BlenderConfig(path=folder, batch_size=8)),
        }
    print(f"{vars(options)}, float32, {sgemm_ceiling():.0f} GFLOP per CPU second at most")
    assert_equal(scorers, table)
    rounds = [
        {name: timed(lambda scorer=scorer: scorer.score(table)) for name, scorer in scorers.items()}
        for _ in range(options.repeats)
    ]
    num_comparisons = options.prompts * options.answers * (options.answers - 1)
    for name in scorers:
        print(f"{name}: {spread([num_comparisons / times[name][1] for times in rounds])} comparisons per CPU second")
    for name in list(scorers)[1:]:
        for clock, unit in enumerate(("wall-clock", "CPU")):
            ratios = [times[name][clock] / times["kumite"][clock] for times in rounds]
            print(f"{name} takes {spread(ratios)} times kumite's {unit} seconds")


if __name__ == "__main__":
    main()
