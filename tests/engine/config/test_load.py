"""From files and command lines to a configuration, and the messages when it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import explain
from engine.config.keys import all_keys, describe
from engine.config.load import config_digest, diff, dump, dump_yaml, load, parse_yaml
from engine.config.run import RunConfig
from engine.errors import ConfigError

MINIMAL = """\
model:
  path: m
prompts:
  source: p.jsonl
scorer:
  kind: pairrm
  path: llm-blender/PairRM
  num_replicas: 8
  gpus: 1
"""
PAIRRM = ["model.path=m", "prompts.source=p", "scorer.kind=pairrm", "scorer.path=x"]


@pytest.fixture
def write(tmp_path):
    def _write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return _write


def problems(*arguments, **options) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*arguments, **options)
    return caught.value.problems


# Layers


def test_the_command_line_wins_over_the_file_and_the_file_over_the_recipe(write):
    base = {"seed": 1, "iterations": 1, "shard_size": 1}
    config = load(write(MINIMAL + "iterations: 2\nshard_size: 2\n"), ["shard_size=3"], base)
    assert (config.seed, config.iterations, config.shard_size) == (1, 2, 3)


def test_a_recipe_alone_or_a_command_line_alone_is_enough():
    base = {"model": {"path": "m"}, "prompts": {"source": "p"}, "scorer": {"kind": "rule", "function": "a:b"}}
    assert load(base=base).model.path == "m"
    assert load(overrides=PAIRRM).scorer.path == "x"


def test_defaults_are_merged_section_by_section_in_the_order_they_are_named(write):
    write(MINIMAL + "seed: 1\nlearner: {batch_size: 8, optimizer: {lr: 1.0e-3, eps: 1.0e-5}}\n", "a.yaml")
    write("seed: 2\nlearner: {optimizer: {lr: 2e-3}}\n", "b.yaml")
    config = load(write("defaults: [a.yaml, b.yaml]\nlearner: {micro_batch_size: 2}\n"))
    assert (config.seed, config.learner.batch_size, config.learner.micro_batch_size) == (2, 8, 2)
    assert (config.learner.optimizer.lr, config.learner.optimizer.eps) == (2e-3, 1e-5)


def test_defaults_are_found_beside_the_file_that_names_them(write, monkeypatch, tmp_path):
    write(MINIMAL, "shared/base.yaml")
    write("defaults: base.yaml\nseed: 5\n", "shared/middle.yaml")
    path = write("defaults: shared/middle.yaml\n")
    monkeypatch.chdir("/")
    assert load(path).seed == 5


def test_defaults_that_go_in_a_circle_are_refused_with_the_circle(write):
    write("defaults: b.yaml\n", "a.yaml")
    write("defaults: a.yaml\n", "b.yaml")
    assert "a.yaml -> b.yaml -> a.yaml" in problems(write("defaults: a.yaml"))[0]


def test_one_file_may_stand_under_two_others(write):
    write(MINIMAL, "base.yaml")
    write("defaults: base.yaml\nseed: 4\n", "a.yaml")
    write("defaults: base.yaml\niterations: 7\n", "b.yaml")
    config = load(write("defaults: [a.yaml, b.yaml]\n"))
    assert (config.seed, config.iterations) == (4, 7)


def test_a_list_replaces_a_list(write):
    write(MINIMAL + "iterations: 2\n", "base.yaml")
    path = write("defaults: base.yaml\nprompts: {source: [x, y]}\n")
    assert load(path).prompts.source == ["x", "y"]
    assert load(path, ["prompts.source=[u,v]"]).prompts.source == ["u", "v"]


def test_a_section_with_nothing_in_it_means_its_defaults(write):
    config = load(write(MINIMAL + "learner:\n  # all commented out\nsampling:\n"))
    assert config.learner.batch_size == 64


def test_a_section_that_may_be_absent_can_be_switched_off(write):
    path = write(MINIMAL + "evaluation: {prompts: {source: held_out.jsonl}}\n")
    assert load(path).evaluation is not None
    assert load(path, ["evaluation=null"]).evaluation is None


# Variants of a section


@pytest.mark.parametrize(
    "overrides",
    [
        ["scorer.kind=rule", "scorer.function=a:b"],
        ["scorer.function=a:b", "scorer.kind=rule"],
        ["scorer={kind: rule, function: 'a:b'}"],
    ],
)
def test_another_kind_of_scorer_starts_afresh_whatever_the_order(write, overrides):
    scorer = load(write(MINIMAL), overrides).scorer
    assert (scorer.kind, scorer.function, scorer.num_replicas, scorer.gpus) == ("rule", "a:b", 1, 0.0)


def test_another_kind_in_a_file_starts_afresh_too(write):
    write(MINIMAL, "base.yaml")
    scorer = load(write("defaults: base.yaml\nscorer: {kind: rule, function: 'a:b'}\n")).scorer
    assert scorer.num_replicas == 1


def test_naming_the_same_kind_again_keeps_its_keys(write):
    write(MINIMAL, "base.yaml")
    scorer = load(
        write("defaults: base.yaml\nscorer: {kind: pairrm, dtype: bfloat16}\n"), ["scorer.kind=pairrm"]
    ).scorer
    assert (scorer.num_replicas, scorer.dtype) == (8, "bfloat16")


def test_a_kind_given_later_than_its_keys_keeps_them(write):
    write("scorer: {num_replicas: 3}\n", "base.yaml")
    path = write("defaults: base.yaml\nmodel: {path: m}\nprompts: {source: p}\nscorer: {kind: pairrm, path: x}\n")
    assert load(path).scorer.num_replicas == 3


def test_another_optimizer_keeps_the_learning_rate_because_both_have_one(write):
    path = write(MINIMAL + "learner: {optimizer: {lr: 1e-6}}\n")
    assert load(path, ["learner.optimizer.name=adamw"]).learner.optimizer.lr == 1e-6


def test_the_name_of_a_run_is_no_variant(write):
    assert load(write(MINIMAL + "seed: 9\n"), ["name=other"]).seed == 9


def test_a_key_of_another_kind_is_named_as_such(write):
    overrides = ["scorer.kind=rule", "scorer.function=a:b", "scorer.path=x"]
    assert problems(write(MINIMAL), overrides) == [
        "scorer.path: unknown key; it belongs to another kind of scorer: pairrm, reward_model, llm_blender "
        "(command line)"
    ]


def test_only_the_chosen_kinds_problems_are_told(write):
    text = MINIMAL.replace("path: llm-blender/PairRM", "batch_tokens: 0")
    assert problems(write(text)) == [
        "scorer.path: missing; expected text (" + str(write(text)) + ":5)",
        f"scorer.batch_tokens = 0: expected a whole number at least 1 ({write(text)}:7)",
    ]


# The command line


@pytest.mark.parametrize(
    "tokens",
    [["learner.optimizer.lr=1e-6"], ["--learner.optimizer.lr=1e-6"], ["--learner.optimizer.lr", "1e-6"]],
)
def test_three_ways_to_write_an_override(tokens):
    assert load(overrides=[*PAIRRM, *tokens]).learner.optimizer.lr == 1e-6


def test_override_values_follow_the_rules_of_the_file():
    arguments = ["generator.engine_args={a: 5e-7, b: no, c: 1:30, d: [1, true]}"]
    assert load(overrides=[*PAIRRM, *arguments]).generator.engine_args == {
        "a": 5e-7,
        "b": "no",
        "c": "1:30",
        "d": [1, True],
    }


def test_a_mapping_on_the_command_line_replaces_its_section(write):
    path = write(MINIMAL + "generator: {engine_args: {a: 1, b: 2}}\n")
    assert load(path, ["generator.engine_args.a=3"]).generator.engine_args == {"a": 3, "b": 2}
    assert load(path, ["generator.engine_args={}"]).generator.engine_args == {}


def test_one_element_of_a_list_can_be_changed(write):
    path = write(MINIMAL.replace("p.jsonl", "[a, b, c]"))
    assert load(path, ["prompts.source.1=x"]).prompts.source == ["a", "x", "c"]
    assert problems(path, ["prompts.source.3=x"]) == [
        "prompts.source.3: the list has no element '3'; it has 0 to 2 (command line)"
    ]


def test_the_later_of_two_equal_overrides_wins():
    assert load(overrides=[*PAIRRM, "seed=1", "seed=2"]).seed == 2


def test_text_that_contains_an_equals_sign_is_kept():
    assert load(overrides=[*PAIRRM, "model.path=a=b"]).model.path == "a=b"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("lr", "'lr': expected key=value, for example learner.optimizer.lr=5e-7"),
        ("--seed", "'--seed': expected key=value"),
        ("=3", "'=3': expected key=value"),
        ("a..b=3", "'a..b=3': expected key=value"),
        ("name=@x", "name = '@x': command line: not YAML"),
        ("name.first=3", "name = {'first': 3}: expected text"),
        ("model.path.x=3", "model.path.x: 'm' has no keys below it"),
    ],
)
def test_an_override_that_cannot_be_read_says_how_to_write_it(token, message):
    (problem,) = problems(overrides=[*PAIRRM, token])
    assert message in problem


# Messages


def test_everything_that_is_wrong_is_told_at_once_with_its_line(write):
    path = write(
        MINIMAL
        + """\
lr: 5e-7
sampling:
  num_samples: 0
  top_p: 1.5
  temprature: 0.7
learner:
  optimizer:
    lr: -1e-6
    name: adam
  gradient_checkpointing: maybe
seed: true
"""
    )
    assert problems(path, ["cluster.backend=raay"]) == [
        f"seed = true: expected a whole number at least 0 ({path}:20)",
        f"sampling.num_samples = 0: expected a whole number from 1 to 256 ({path}:12)",
        f"sampling.top_p = 1.5: expected a number above 0 and at most 1 ({path}:13)",
        f"sampling.temprature: unknown key; did you mean sampling.temperature? ({path}:14)",
        "cluster.backend = 'raay': expected one of ray, local; did you mean ray? (command line)",
        f"learner.gradient_checkpointing = 'maybe': expected true or false ({path}:19)",
        f"learner.optimizer.name = 'adam': expected one of rmsprop, adamw; did you mean adamw? ({path}:18)",
        f"learner.optimizer.lr = -1e-06: expected a number at least 0 ({path}:17)",
        f"lr: unknown key; did you mean learner.optimizer.lr? ({path}:10)",
    ]


def test_the_count_and_every_problem_are_in_the_message():
    with pytest.raises(ConfigError, match=r"^2 problems in the configuration:\n  - .*\n  - "):
        load(overrides=[*PAIRRM, "seed=-1", "iterations=0"])


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("lr", "did you mean learner.optimizer.lr?"),
        ("learner.lr", "did you mean learner.optimizer.lr?"),
        ("learner.batchsize", "did you mean learner.batch_size?"),
        ("sampling.eta", "did you mean algorithm.eta?"),
        ("num_sample", "did you mean sampling.num_samples"),
        ("learning_rat", "did you mean learner.optimizer.lr?"),
        ("beta", "algorithm.eta = 1 / beta in sppo"),
        ("algorithm.beta", "algorithm.eta = 1 / beta in sppo"),
        ("pairs", "here it is sampling.num_samples"),
        ("sampling.n_samples_per_prompt", "here it is sampling.num_samples"),
        ("num_generations", "here it is sampling.num_samples"),
        ("learning_rate", "here it is learner.optimizer.lr"),
        ("per_device_train_batch_size", "here it is learner.micro_batch_size"),
        ("gradient_accumulation_steps", "here it is learner.batch_size / (learner.micro_batch_size"),
        ("max_length", "here it is sampling.max_prompt_tokens + sampling.max_new_tokens"),
        ("num_train_epochs", "here it is learner.schedule.scheduler_total_epochs"),
        ("loss_type", "here it is algorithm.name"),
        ("rpo_alpha", "here it is algorithm.nll_weight"),
        ("discopop_tau", "here it is algorithm.tau"),
        ("model_name_or_path", "here it is model.path"),
    ],
)
def test_an_unknown_key_leads_to_the_right_one(key, advice):
    (problem,) = problems(overrides=[*PAIRRM, f"{key}=1"])
    assert problem.startswith(f"{key}: unknown key")
    assert advice in problem


@pytest.mark.parametrize(("weight", "shown"), [("0", "0"), ("-1", "-1"), ("true", "true"), ("much", "'much'")])
def test_a_mapping_says_what_its_values_must_be(weight, shown):
    dpo = [*PAIRRM, "algorithm.name=dpo"]
    (problem,) = problems(overrides=[*dpo, f"algorithm.losses={{ipo_sum: 1, hinge: {weight}}}"])
    assert problem == f"algorithm.losses.hinge = {shown}: expected a number above 0 (command line)"
    (problem,) = problems(overrides=[*dpo, "algorithm.losses=hinge"])
    assert problem == "algorithm.losses = 'hinge': expected a mapping, each value a number above 0 (command line)"


def test_a_name_that_stands_in_several_sections_lists_them():
    (problem,) = problems(overrides=[*PAIRRM, "num_replicas=4"])
    assert {"generator.num_replicas", "scorer.num_replicas"} <= set(re.findall(r"[\w.]+num_replicas", problem))


def test_a_dotted_key_in_a_file_is_explained(write):
    (problem,) = problems(write(MINIMAL + "learner.optimizer.lr: 1e-6\n"))
    assert "in a file write nested sections" in problem


def test_what_is_missing_says_what_belongs_there():
    messages = problems(overrides=["model.dtype=float32"])
    assert messages[0] == "model.path: missing; expected text (command line)"
    assert messages[1].startswith("prompts: missing; expected a section with the keys source, split")
    (problem,) = problems(overrides=["model.path=m", "prompts.source=p.jsonl"])
    assert "scorer is missing: algorithm.name = sppo learns from its verdicts" in problem


def test_a_section_without_its_kind_lists_the_kinds(write):
    path = write(MINIMAL.replace("  kind: pairrm\n", ""))
    assert problems(path) == [
        f"scorer.kind: missing; expected one of pairrm, reward_model, rule, llm_blender, judge, ifeval ({path}:5)"
    ]


JUDGE = ["model.path=m", "prompts.source=p", "scorer.kind=judge", "scorer.prompt=p.txt"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "scorer.server: missing; expected a section whose kind is one of policy, vllm"),
        (
            ["scorer.server.kind=vlm"],
            "scorer.server.kind = 'vlm': expected one of policy, vllm, openai; did you mean vllm",
        ),
        (["scorer.server=policy"], "scorer.server = 'policy': expected a section whose kind is one of policy, vllm"),
        (["scorer.server.path=x"], "scorer.server.kind: missing; expected one of policy, vllm"),
        (
            ["scorer.server.kind=policy", "scorer.server.path=x"],
            "scorer.server.path: unknown key; it belongs to another kind of scorer.server: vllm",
        ),
        (["scorer.server.kind=vllm"], "scorer.server.path: missing; expected text"),
        (["scorer.server.kind=vllm", "scorer.server.pth=x"], "scorer.server.pth: unknown key; did you mean "),
    ],
)
def test_kinds_within_kinds_are_distinguished(overrides, expected):
    assert any(problem.startswith(expected) for problem in problems(overrides=[*JUDGE, *overrides]))


def test_another_server_starts_afresh(write):
    judge = "kind: judge\n  prompt: p.txt\n  server: {kind: vllm, path: x}"
    path = write("model: {path: m}\nprompts: {source: p}\nscorer:\n  " + judge + "\n")
    assert load(path).scorer.server.path == "x"
    assert load(path, ["scorer.server.kind=policy"]).scorer.by_policy
    assert load(path, ["scorer.server.kind=vllm"]).scorer.server.path == "x"


def test_a_value_with_several_types_has_one_message():
    assert problems(overrides=[*PAIRRM, "prompts.source=[1, a]", "algorithm.baseline=third"]) == [
        "prompts.source = [1, 'a']: expected text or a list, each text (command line)",
        "algorithm.baseline = 'third': expected one of half, logpartition or a number (command line)",
    ]


def test_keys_that_do_not_fit_together_say_so(write):
    path = write(MINIMAL + "learner:\n  batch_size: 10\n  micro_batch_size: 4\n")
    assert problems(path) == [
        f"learner: batch_size = 10 is not a multiple of micro_batch_size x num_ranks = 4 x 1 = 4 ({path}:10)"
    ]


def test_a_line_in_a_file_under_defaults_is_named_by_that_file(write):
    base = write(MINIMAL + "seed: -1\n", "base.yaml")
    assert problems(write("defaults: base.yaml\nname: other\n")) == [
        f"seed = -1: expected a whole number at least 0 ({base}:10)"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected `key: value` lines at the top level, got ['a', 'b']"),
        ("just text", "expected `key: value` lines at the top level, got 'just text'"),
        ("defaults: 3\n", "defaults = [3]: expected a file or a list of files"),
        ("defaults: absent.yaml\n", "absent.yaml: no such file"),
        ("seed: 1\nseed: 2\n", "the key 'seed' is here twice"),
    ],
)
def test_a_file_that_is_no_configuration_says_why(write, text, message):
    assert message in problems(write(text))[0]


def test_a_mistyped_file_name_leads_to_the_right_one(write, tmp_path):
    write(MINIMAL, "sppo_llama.yaml")
    assert problems(tmp_path / "spo_llama.yaml")[0].endswith("no such file; did you mean sppo_llama.yaml?")


def test_files_that_are_no_text_or_too_large_or_folders_are_refused(tmp_path):
    binary, large = tmp_path / "model.yaml", tmp_path / "large.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    large.write_bytes(b"#" * (2**20 + 1))
    assert "not UTF-8" in problems(binary)[0]
    assert "larger than 1048576 bytes; is it a configuration?" in problems(large)[0]
    assert "Is a directory" in problems(tmp_path)[0]


# Writing, comparing, naming


@settings(max_examples=30)  # each writes, reads and compares a whole configuration
@given(
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
    path=st.text(st.characters(codec="utf-8"), min_size=1),
    lr=st.floats(0, 1),
    limit=st.none() | st.integers(1, 10**9),
)
def test_a_dumped_configuration_loads_to_the_same(tmp_path_factory, name, path, lr, limit):
    base = {"name": name, "model": {"path": path}, "prompts": {"source": path, "limit": limit}}
    base |= {"scorer": {"kind": "pairrm", "path": path}, "learner": {"optimizer": {"lr": lr}}}
    config = load(base=base)
    file = tmp_path_factory.mktemp("dump") / "run.yaml"
    file.write_text(dump(config), encoding="utf-8", newline="")
    assert load(file) == config
    assert config_digest(load(file)) == config_digest(config)


def test_a_diff_names_what_changed_what_came_and_what_went():
    old = {"a": {"lr": 5e-7, "same": 1, "gone": True}, "l": [1, 2], "n": None}
    new = {"a": {"lr": 1e-6, "same": 1}, "l": [1, 3], "n": "x", "s": {"t": 0}}
    assert diff(old, new) == [
        "a.lr: 5e-07 -> 1e-06",
        "a.gone: true -> (absent)",
        "l: [1, 2] -> [1, 3]",
        "n: null -> 'x'",
        "s.t: (absent) -> 0",
    ]
    assert diff(old, old) == []
    assert diff({"a": (1, 2)}, {"a": [1, 2]}) == []


EVALUATION = "evaluation={prompts: {source: e}, scorer: {kind: rule, function: 'a:b', num_replicas: 2}}"


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "output=/elsewhere",
        "cluster.placement=colocated",
        "cluster.max_retries=9",
        "tracking.report_to=[tensorboard]",
        "generator.num_replicas=8",
        "generator.probe_tolerance=0.1",
        "scorer.num_replicas=8",
        "scorer.cpus=4",
        "learner.checkpoint_every=7",
        "evaluation.scorer.num_replicas=3",
    ],
)
def test_where_and_how_fast_a_run_computes_does_not_change_its_digest(override):
    base = [*PAIRRM, EVALUATION]
    assert config_digest(load(overrides=[*base, override])) == config_digest(load(overrides=base))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "iterations=4",
        "shard_size=16",
        "model.path=other",
        "sampling.temperature=0.7",
        "scorer.dtype=bfloat16",
        "algorithm.eta=10",
        "learner.num_ranks=2",
        "learner.logits_chunk=64",
        "learner.optimizer.lr=1e-6",
        "generator.tensor_parallel_size=2",
        "generator.engine_args={seed: 1}",
        "evaluation.scorer.function=a:c",
    ],
)
def test_what_may_change_a_number_changes_the_digest(override):
    base = [*PAIRRM, EVALUATION]
    assert config_digest(load(overrides=[*base, override])) != config_digest(load(overrides=base))


def test_a_whole_number_and_its_float_are_the_same_configuration():
    one, other = ([*PAIRRM, f"algorithm.eta={text}"] for text in ("1000", "1e3"))
    assert config_digest(load(overrides=one)) == config_digest(load(overrides=other))


# The help text


def test_the_help_has_every_key_with_its_range_its_default_and_its_meaning():
    text = describe()
    for path in flat(load(overrides=[*PAIRRM, EVALUATION]).model_dump()):
        assert re.search(rf"^{re.escape(path)}( +\[\w+\])?: ", text, re.M), path
    assert "learner.optimizer.lr: a number at least 0; default 5e-07" in text
    assert "sampling.num_samples: a whole number from 1 to 256; default 5\n    K, the answers per prompt" in text
    assert "model.path: text; required" in text
    assert "scorer: section, kind is one of pairrm, reward_model, rule, llm_blender" in text
    assert "scorer.function  [rule]: text matching" in text


def flat(data: dict, prefix: str = "") -> list[str]:
    deeper = [p for k, v in data.items() if isinstance(v, dict) for p in flat(v, f"{prefix}{k}.")]
    return [f"{prefix}{key}" for key in data] + deeper


def test_every_key_named_in_advice_exists():
    known = {key.path for key in all_keys()} | set(RunConfig.model_fields)
    known |= {"algorithm.margin"}
    for advice in explain.ELSEWHERE.values():
        named = set(re.findall(r"[a-z_]+(?:\.[a-z_]+)+", advice))
        assert named <= known, named - known


@given(st.text(alphabet=st.sampled_from("ab \\\t\u2028'\":#"), min_size=100, max_size=400))
def test_a_long_text_with_escapes_is_dumped_and_read_back_unchanged(tmp_path_factory, text):
    """A writer that folds lines at a width would add or move spaces beside escapes."""
    file = tmp_path_factory.mktemp("dump") / "config.yaml"
    file.write_text(dump_yaml({"text": text}), encoding="utf-8")
    assert parse_yaml(file.read_text(encoding="utf-8"), "x").plain() == {"text": text}
