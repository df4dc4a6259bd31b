"""The learner on real DeepSpeed: groups of one and two processes train a tiny random Llama over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from actors.learner.policy import load_policy
from actors.learner.step_metrics import GradientWatch
from actors.tiny_policy import new_llama
from engine.algorithms import SPPO
from engine.config.run import ModelConfig
from engine.errors import ModelError
from engine.schema import REF_LOGPS, SELECTED, append, conform

pytestmark = pytest.mark.real

WORKER = Path(__file__).with_name("learner_worker.py")
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
STEADY = {"name": "rmsprop", "lr": 2e-2, "eps": 1.0, "max_grad_norm": 1.0}
"""eps = 1 makes an update nearly proportional to the gradient, so that weights can be compared."""
FLAT = {"kind": "constant", "warmup_ratio": 0.0}


class Group:
    """World_size worker processes; a call goes to all of them and returns all their answers."""

    def __init__(self, world_size: int, log: Path):
        self.log = log.open("w")
        self.ranks = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(rank), str(world_size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
            )
            for rank in range(world_size)
        ]
        self.joined = False

    def send(self, ranks: list[subprocess.Popen], request: dict) -> list[dict]:
        for rank in ranks:
            rank.stdin.write(json.dumps(request) + "\n")
            rank.stdin.flush()
        lines = [rank.stdout.readline() for rank in ranks]
        assert all(lines), f"a worker died, see {self.log.name}:\n{Path(self.log.name).read_text()[-3000:]}"
        return [json.loads(line) for line in lines]

    def new(self, dtype: str = "float32", eta: float = 10.0, algorithm: dict | None = None, **config) -> None:
        """A new learner in the same processes, which join their group the first time."""
        config = {"num_ranks": len(self.ranks), "optimizer": STEADY, "schedule": FLAT, "logits_chunk": 5, **config}
        model = {"path": "unused", "dtype": dtype}
        self.send(self.ranks, {"call": "new", "config": config, "model": model, "algorithm": algorithm or {"eta": eta}})
        if not self.joined:
            [address] = self.send(self.ranks[:1], {"call": "rendezvous", "arguments": []})
            self.call("join", *address["value"], 120.0)
            self.joined = True

    def replies(self, method: str, *arguments) -> list[dict]:
        return self.send(self.ranks, {"call": method, "arguments": list(arguments)})

    def call(self, method: str, *arguments):
        """What rank 0 answered, once all ranks have; they must agree."""
        replies = self.replies(method, *arguments)
        assert all("value" in reply for reply in replies), replies
        assert all(reply == replies[0] for reply in replies), replies
        return replies[0]["value"]

    def stop(self) -> None:
        for rank in self.ranks:
            rank.stdin.close()
        try:
            for rank in self.ranks:
                rank.wait(timeout=60)
        finally:
            for rank in self.ranks:
                rank.kill()
                rank.wait()
            self.log.close()


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("learner_logs")


@pytest.fixture(scope="module")
def one(logs):
    group = Group(1, logs / "one.txt")
    yield group
    group.stop()


@pytest.fixture(scope="module")
def two(logs):
    group = Group(2, logs / "two.txt")
    yield group
    group.stop()


def write_llama(folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """A random Llama of 2 layers with what a policy folder has beside its weights."""
    model = new_llama(
        seed=1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
        attention_dropout=0.1,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    model.to(dtype).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    # Saving this one would fail transformers' validation: a temperature without sampling.
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7, "eos_token_id": 2}')
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


def rows(sizes: tuple[int, ...]) -> list[pa.Table]:
    """SELECTED of random ids, one table per shard; answers of 0 to 9 tokens, mostly pairs, some threes."""
    generator = torch.Generator().manual_seed(3)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, 64, (length,), generator=generator).tolist()

    def row(shard: int, i: int) -> dict:
        n = 3 if i == 1 else 2
        return {
            "prompt_id": f"s{shard}p{i}",
            "prompt_token_ids": ids(1, 8),
            "completion_index": list(range(n)),
            "completion_token_ids": [ids(1, 10) for _ in range(n - 1)] + [[] if i == 2 else ids(1, 10)],
            "win_rate": torch.rand(n, generator=generator).double().tolist(),
            "baseline": 0.5,
        }

    return [
        conform(pa.Table.from_pylist([row(shard, i) for i in range(size)], SELECTED), SELECTED, "test")
        for shard, size in enumerate(sizes)
    ]


def on_disk(table: pa.Table, path: Path) -> dict:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return {"table": str(path)}


def with_ref_logps(group: Group, tables: list[pa.Table], folder: Path) -> list[dict]:
    """Let the group compute the references of each shard and put the finished tables on disk."""
    finished = []
    for i, table in enumerate(tables):
        logps = group.call("ref_logps", on_disk(table, folder / f"rows{i}.arrow"))
        table = append(table, REF_LOGPS, "test", ref_logps=logps)
        finished.append(on_disk(table, folder / f"ref_logps{i}.arrow"))
    return finished


def plain_logps(folder: Path, tables: list[pa.Table]) -> list[list[torch.Tensor]]:
    """[rows][n] summed log-probabilities from the model's full logits, with gradients, one answer at a time."""
    model = load(folder)
    return [
        [sum_of_answer(model, row["prompt_token_ids"], answer) for answer in row["completion_token_ids"]]
        for table in tables
        for row in table.to_pylist()
    ]


def load(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def token_logps(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float()
    return logits.log_softmax(-1)[range(len(prompt) - 1, len(prompt) + len(answer) - 1), answer]


def sum_of_answer(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    return token_logps(model, prompt, answer).sum()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def assert_bit_equal(left: Path, right: Path) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def train(group: Group, llama: Path, folder: Path, sizes=(5, 0, 6), num_steps: int = 100, **config) -> list[dict]:
    """A whole iteration; weights end in folder / "weights"."""
    folder.mkdir(exist_ok=True)
    group.new(**{"batch_size": 4, "micro_batch_size": 2, **config})
    group.call("open", str(llama))
    group.call("begin", with_ref_logps(group, rows(sizes), folder), 0)
    metrics = group.call("advance", num_steps)
    group.call("save_weights", str(folder / "weights"), 0, [], [])
    return metrics


def test_an_architecture_that_scales_its_logits_is_refused_with_its_name(tmp_path):
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    config = CohereConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=64,
        logit_scale=0.25,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    CohereForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"CohereForCausalLM post-processes its logits.* nats per token"):
        load_policy(ModelConfig(path="unused", dtype="float32"), tmp_path, logits_chunk=4)


def test_soft_capped_logits_of_gemma_2_are_understood(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=64,
        final_logit_softcapping=0.5,
        initializer_range=0.5,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    policy = load_policy(ModelConfig(path="unused", dtype="float32"), tmp_path, logits_chunk=4)
    assert policy.head.softcap == 0.5


def test_a_folder_that_lacks_weights_is_refused_rather_than_trained_from_noise(llama, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ModelError, match="is not a folder"):
        load_policy(ModelConfig(path="unused"), tmp_path / "nowhere", 4)
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    with pytest.raises(ModelError, match="cannot load the policy"):
        load_policy(ModelConfig(path="unused"), tmp_path, 4)
    kept = {name: tensor for name, tensor in weights(llama).items() if "layers.1.mlp.up_proj" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_policy(ModelConfig(path="unused"), tmp_path, 4)


def test_the_watch_notices_a_gradient_that_is_not_finite_although_the_loss_is():
    layer = torch.nn.Linear(2, 1, bias=False)
    watch, yes = GradientWatch(layer), torch.tensor(True)
    with torch.no_grad():
        layer.weight.zero_()
    layer(torch.ones(2)).sum().backward()
    assert watch.take(default=yes)
    loss = layer(torch.ones(2)).abs().sqrt().sum()  # 0, with an infinite slope
    loss.backward()
    assert loss.isfinite() and not watch.take(default=yes)
    assert watch.take(default=yes)


def test_references_are_the_models_own_log_probabilities(one, llama, tmp_path):
    tables = rows((5,))
    one.new(batch_size=4, micro_batch_size=2)
    one.call("open", str(llama))
    found = one.call("ref_logps", on_disk(tables[0], tmp_path / "rows.arrow"))
    expected = plain_logps(llama, tables)
    assert [len(row) for row in found] == [2, 3, 2, 2, 2]
    assert found[2][1] == 0.0  # an empty answer
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx([value.item() for value in theirs], abs=1e-4)


def test_the_probe_gives_every_tokens_log_probability(two, llama):
    prompts, answers = [[1, 5, 9], [4]], [[8, 3, 2], [60]]
    two.new(batch_size=4)
    two.call("open", str(llama))
    found = two.call("token_logps", prompts, answers)
    model = load(llama)
    for ours, prompt, answer in zip(found, prompts, answers, strict=True):
        assert ours == pytest.approx(token_logps(model, prompt, answer).tolist(), abs=1e-5)


@pytest.fixture(scope="module")
def trained(two, llama, tmp_path_factory) -> dict[int, tuple[list[dict], Path]]:
    """Each ZeRO stage's metrics and folder after the same iteration on two ranks."""
    results = {}
    for stage in (0, 1, 2, 3):
        folder = tmp_path_factory.mktemp(f"zero{stage}")
        results[stage] = train(two, llama, folder, zero_stage=stage), folder / "weights"
    return results


def test_all_zero_stages_take_the_same_steps_and_reach_the_same_weights(trained):
    baseline, folder = trained[0]
    assert [step["step"] for step in baseline] == [1, 2, 3]
    for stage in (1, 2, 3):
        metrics, other = trained[stage]
        for ours, theirs in zip(metrics, baseline, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        for name, tensor in weights(other).items():
            torch.testing.assert_close(tensor, weights(folder)[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_log_ratio_before_the_first_update_is_exactly_zero_and_moves_after_it(trained, stage):
    metrics, _ = trained[stage]
    assert metrics[0]["log_ratio/max_abs"] == 0.0
    assert metrics[0]["rewards/margins"] == 0.0
    assert metrics[1]["log_ratio/max_abs"] > 1e-3


def test_one_rank_and_two_ranks_take_the_same_steps(one, trained, llama, tmp_path):
    alone = train(one, llama, tmp_path, zero_stage=0)
    together, folder = trained[0]
    assert alone[0]["loss"] == pytest.approx(together[0]["loss"], rel=1e-9)
    for ours, theirs in zip(alone, together, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    for name, tensor in weights(tmp_path / "weights").items():
        torch.testing.assert_close(tensor, weights(folder)[name], rtol=1e-4, atol=1e-6)


def hand_written_step(llama: Path, tables: list[pa.Table], eta: float) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, gradient norm and new weights of one full-batch SPPO step (eq. 4.7) with clipped RMSprop."""
    model = load(llama)
    losses = []
    for row in (row for table in tables for row in table.to_pylist()):
        logps = [sum_of_answer(model, row["prompt_token_ids"], answer) for answer in row["completion_token_ids"]]
        targets = [eta * (rate - row["baseline"]) for rate in row["win_rate"]]
        squares = [(lp - lp.detach() - target) ** 2 for lp, target in zip(logps, targets, strict=True)]
        losses.append(sum(squares) / len(squares))
    loss = sum(losses) / len(losses)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), STEADY["max_grad_norm"])
    for parameter in model.parameters():
        update = parameter.grad / ((0.01 * parameter.grad**2).sqrt() + STEADY["eps"])
        parameter.data -= STEADY["lr"] * update
    return loss.item(), norm.item(), dict(model.state_dict())


@pytest.mark.parametrize("stage", [0, 3])
def test_a_ragged_step_is_the_exact_mean_over_its_rows_as_written_by_hand(two, llama, tmp_path, stage):
    # Seven rows in shards of 3 and 4, micro-batches of 2: four of unequal size on two ranks, batch 8.
    [metrics] = train(two, llama, tmp_path, sizes=(3, 4), batch_size=8, micro_batch_size=2, zero_stage=stage)
    loss, norm, expected = hand_written_step(llama, rows((3, 4)), eta=10.0)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for name, tensor in weights(tmp_path / "weights").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_metrics_speak_of_the_answers_with_the_highest_and_the_lowest_win_rate(one, llama, tmp_path):
    tables = rows((4,))
    first, second = train(
        one,
        llama,
        tmp_path,
        sizes=(4,),
        batch_size=4,
        schedule={**FLAT, "scheduler_total_epochs": 2, "stop_after_epochs": 2},
    )
    before = plain_logps(llama, tables)
    chosen = [
        logps[max(range(len(r)), key=r.__getitem__)].item()
        for logps, r in zip(before, tables[0]["win_rate"].to_pylist(), strict=True)
    ]
    assert first["logps/chosen"] == pytest.approx(sum(chosen) / 4, abs=1e-4)
    assert first["num_tokens"] == sum(
        len(r["prompt_token_ids"]) * len(r["completion_index"]) + sum(map(len, r["completion_token_ids"]))
        for r in tables[0].to_pylist()
    )
    assert (first["epoch"], second["epoch"]) == (1.0, 2.0)
    assert second["rewards/margins"] == pytest.approx(second["rewards/chosen"] - second["rewards/rejected"])
    assert second["rewards/chosen"] == pytest.approx(
        (second["logps/chosen"] - first["logps/chosen"]) * SPPO(eta=10.0).reward_scale(), abs=1e-6
    )
    assert second["loss"] < first["loss"]


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (3, "float32"), (1, "bfloat16")])
def test_a_learner_that_restarts_from_a_checkpoint_ends_with_bit_equal_weights(two, llama, tmp_path, stage, dtype):
    unbroken = train(two, llama, tmp_path, zero_stage=stage, dtype=dtype)
    shards = [{"table": str(tmp_path / f"ref_logps{i}.arrow")} for i in range(3)]
    two.call("open", str(llama))
    two.call("begin", shards, 0)
    two.call("advance", 1)
    two.call("save_checkpoint", str(tmp_path / "checkpoint"), 1)

    two.new(batch_size=4, micro_batch_size=2, zero_stage=stage, dtype=dtype)
    two.call("open", str(llama))
    two.call("begin", shards, 0)
    assert two.call("load_checkpoint", str(tmp_path / "checkpoint")) == 1
    assert two.call("advance", 100) == unbroken[1:]
    two.call("save_weights", str(tmp_path / "resumed"), 0, [], [])
    assert_bit_equal(tmp_path / "weights", tmp_path / "resumed")

    two.call("open", str(llama))
    two.call("begin", shards[:1], 0)
    refusals = two.replies("load_checkpoint", str(tmp_path / "checkpoint"))
    assert [reply["error"] for reply in refusals] == ["StoreError"] * 2


@pytest.mark.parametrize("stage", [0, 3])
def test_a_poisoned_row_stops_all_ranks_before_the_weights_change_and_is_named(two, llama, tmp_path, stage):
    two.new(batch_size=4, micro_batch_size=1, zero_stage=stage)
    two.call("open", str(llama))
    tables = rows((4,))
    logps = two.call("ref_logps", on_disk(tables[0], tmp_path / "rows.arrow"))
    logps[3][0] = float("nan")
    poisoned = append(tables[0], REF_LOGPS, "test", ref_logps=logps)
    two.call("begin", [on_disk(poisoned, tmp_path / "poisoned.arrow")], 0)
    replies = two.replies("advance", 1)
    assert [reply["error"] for reply in replies] == ["NonFiniteError"] * 2
    for reply in replies:
        assert "step 1" in reply["message"]
        assert "loss of prompts ['s0p3'] (shard 0)" in reply["message"]
        assert "s0p0" not in reply["message"]
    assert {reply["error"] for reply in two.replies("advance", 1)} == {"RoleError"}
    two.call("save_weights", str(tmp_path / "weights"), 0, [], [])
    assert_bit_equal(tmp_path / "weights", llama)


def test_the_saved_folder_is_complete_and_reproduces_the_learners_log_probabilities(two, trained, llama):
    metrics, folder = trained[3]
    two.new(batch_size=4)
    two.call("open", str(folder))
    [ours] = two.call("token_logps", [[1, 5, 9]], [[8, 3, 2]])
    assert ours == pytest.approx(token_logps(load(folder), [1, 5, 9], [8, 3, 2]).tolist(), abs=1e-5)
    assert ours != pytest.approx(token_logps(load(llama), [1, 5, 9], [8, 3, 2]).tolist(), abs=1e-3)
    for name in ("chat_template.jinja", "tokenizer.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (llama / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["attention_dropout"] == 0.1  # training switches it off, the file keeps what it said
    assert metrics[-1]["epoch"] == 1.0


@pytest.mark.parametrize("offload", [False, True])
def test_bfloat16_with_a_tied_head_trains_from_a_log_ratio_of_zero_and_is_saved_in_bfloat16(two, tmp_path, offload):
    tied = write_llama(tmp_path / "tied", tied=True, dtype=torch.bfloat16)
    metrics = train(
        two,
        tied,
        tmp_path / "run",
        zero_stage=3,
        dtype="bfloat16",
        gradient_checkpointing=True,
        offload_optimizer=offload,
    )
    assert metrics[0]["log_ratio/max_abs"] == 0.0
    assert metrics[-1]["log_ratio/max_abs"] > 0.0
    saved = weights(tmp_path / "run" / "weights")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in saved
