"""Adapters as files: ours open in PEFT, PEFT's open here, and what does not fit is refused."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from checkpoints import byte_tokenizer, random_gpt2, random_llama
from plinth.cli.models import app
from plinth.kernels.training import SdpaBackend
from plinth.models.adapters.lora import LoraConfig, adapters, attach, merged_tensors
from plinth.models.adapters.peft_format import put_on, read_adapter, save_adapter
from plinth.models.publish import import_adapter, import_model
from plinth.models.weights import load_decoder
from plinth.shared.errors import DataLoss, InvalidArgument, NotFound

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FAMILIES = {"llama": random_llama, "gpt2": random_gpt2}


@pytest.fixture(params=FAMILIES)
def base(request, tmp_path):
    return byte_tokenizer(FAMILIES[request.param](tmp_path / "base", layers=2))


@pytest.fixture
def llama(tmp_path):
    return byte_tokenizer(random_llama(tmp_path / "base", layers=1))


def made_by_us(base, out, config=None, seed=5):
    config = config or LoraConfig(rank=4, alpha=12)
    decoder = load_decoder(base)
    attach(decoder, config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in adapters(decoder).values():
            adapter.b.normal_(0.0, 0.1, generator=generator)
    save_adapter(decoder, config, out, "base@1")
    return decoder


def made_by_peft(base, out, **options):
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options),
    )
    model.save_pretrained(out)
    return model.eval()


def greedy(decoder, prompt, tokens=24):
    ids = list(prompt)
    for _ in range(tokens):
        backend = SdpaBackend(1, len(ids))
        with torch.no_grad():
            hidden = decoder(torch.tensor(ids), torch.arange(len(ids)), backend)
            ids.append(int(decoder.logits(hidden[-1:], backend).argmax()))
    return ids


def generated(model, prompt, tokens=24):
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        eos_token_id=319,
        pad_token_id=0,
    )
    return out[0].tolist()


def test_ours_opens_in_peft_with_the_same_greedy_answers(base, tmp_path) -> None:
    decoder = made_by_us(base, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    )
    prompt = [5, 60, 7, 133, 20]
    ours = greedy(decoder, prompt)
    assert 319 not in ours
    assert generated(model, prompt) == ours
    assert greedy(load_decoder(base), prompt) != ours
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base@1"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["fan_in_fan_out"] == (decoder.config.family == "gpt2")


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 10, "target_modules": "all-linear"},
        {"r": 6, "lora_alpha": 3, "use_rslora": True, "target_modules": ["v_proj", "c_attn"]},
        {
            "r": 4,
            "target_modules": ["up_proj", "down_proj", "c_fc", "c_proj"],
            "rank_pattern": {"down_proj": 2, "mlp.c_proj": 3},
            "alpha_pattern": {"up_proj": 32, "layers.1.mlp.down_proj": 5, "c_fc": 1},
        },
    ],
    ids=["all", "rslora", "patterns"],
)
def test_pefts_opens_here_with_the_same_answers(base, tmp_path, options) -> None:
    family = load_decoder(base).config.family
    mine = {"llama": "_proj", "gpt2": "c_"}[family]
    targets = options["target_modules"]
    if isinstance(targets, list):
        targets = [t for t in targets if mine in t]
    options = {**options, "target_modules": targets, "fan_in_fan_out": family == "gpt2"}
    model = made_by_peft(base, tmp_path / "adapter", **options)
    decoder = load_decoder(base)
    put_on(decoder, read_adapter(tmp_path / "adapter"), "adapter")
    merged = model.merge_and_unload().state_dict()
    ours = merged_tensors(decoder)
    for name in adapters(decoder):
        truth = merged[f"{name}.weight"]
        truth = truth.t() if family == "gpt2" else truth
        assert torch.allclose(ours[f"{name}.weight"], truth, atol=1e-5), name
    assert adapters(decoder)


def test_import_merges_once_and_keeps_the_lineage(base, store, tmp_path) -> None:
    record = import_model(store, str(base), "base", workspace=tmp_path / "work")
    decoder = made_by_us(base, tmp_path / "adapter")
    made = import_adapter(
        store, tmp_path / "adapter", "tuned", base="base", workspace=tmp_path / "work"
    )
    assert made.kind == "model"
    assert made.parents == (record.ref,)
    folder = store.fetch(made)
    ours = load_decoder(folder).state_dict()
    truth = merged_tensors(decoder)
    assert all(torch.equal(ours[name], truth[name]) for name in truth)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompt = [5, 60, 7, 133, 20]
    assert generated(model, prompt) == greedy(decoder, prompt)
    assert (folder / "tokenizer.json").read_bytes() == (
        store.fetch(record) / "tokenizer.json"
    ).read_bytes()
    again = import_adapter(
        store, tmp_path / "adapter", "tuned", base="base@1", workspace=tmp_path / "work"
    )
    assert again == made
    assert list((tmp_path / "work").iterdir()) == []


def test_the_command_line_imports_an_adapter(llama, tmp_path) -> None:
    made_by_us(llama, tmp_path / "adapter")

    def plinth(*arguments):
        return CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / "data")])

    assert plinth("import", str(llama), "--name", "base").exit_code == 0
    adapter = str(tmp_path / "adapter")
    alone = plinth("import", adapter, "--name", "tuned")
    assert alone.exit_code == 1
    assert "--base" in " ".join(alone.output.split())
    stray = plinth("import", str(llama), "--name", "tuned", "--base", "base")
    assert stray.exit_code == 1
    assert "no folder of a PEFT adapter" in " ".join(stray.output.split())
    served = plinth("serve", adapter)
    assert served.exit_code == 1
    assert "is a PEFT adapter, not a model" in " ".join(served.output.split())
    done = plinth("import", adapter, "--name", "tuned", "--base", "base")
    assert done.exit_code == 0, done.output
    assert "tuned@1" in done.output


# -- what is refused ------------------------------------------------------------------------------


def change_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA'"),
        ({"peft_type": None}, "only 'LORA'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"r": 5}, "its tensors have rank 4"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ({"lora_alpha": 1e999}, "must be a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": -8}, "must be a number above 0"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_alpha": 1e30}, "at most 1e+06"),
        ({"alpha_pattern": {"q_proj": 0}}, "lora_alpha is 0"),
        ({"rank_pattern": {"q_proj": 0}}, "r is 0"),
        ({"r": None}, "r is None"),
        ({"use_rslora": "false"}, "use_rslora is 'false', must be true or false"),
        ({"use_something_new": True}, "'use_something_new' (here True) is unknown"),
        ({"rank_pattern": {"(a+)+$": 4}}, "only plain names"),
        ({"rank_pattern": [1]}, "must be an object"),
    ],
)
def test_a_setting_that_would_compute_something_else(llama, tmp_path, fields, says) -> None:
    made_by_us(llama, tmp_path / "adapter")
    change_config(tmp_path / "adapter", **fields)
    with pytest.raises(InvalidArgument, match=r"adapter_config\.json") as caught:
        read_adapter(tmp_path / "adapter")
    assert says in caught.value.message


def test_every_setting_of_peft_is_known(llama, tmp_path) -> None:
    """All of LoraConfig's fields at their defaults, as PEFT writes them."""
    made_by_us(llama, tmp_path / "adapter")
    config = peft.LoraConfig().to_dict()
    own = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    change_config(tmp_path / "adapter", **{k: v for k, v in config.items() if k not in own})
    read_adapter(tmp_path / "adapter")


def change_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def spoil(tensors):
    tensors[Q] = tensors[Q].clone().fill_(float("nan"))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (spoil, DataLoss, "NaN or infinity"),
        (lambda t: t.pop(Q), InvalidArgument, "lora_A.weight is missing"),
        (lambda t: t.update({Q: t[Q][:, 0].clone()}), InvalidArgument, "must be"),
        (lambda t: t.update({Q: t[Q].int()}), InvalidArgument, "only fp32, fp16 and bf16"),
        (lambda t: t.update({"x.lora_magnitude_vector": t[Q].clone()}), InvalidArgument, "none of"),
        (lambda t: t.clear(), InvalidArgument, "holds no tensor"),
    ],
)
def test_tensors_that_are_no_adapter(llama, tmp_path, change, error, says) -> None:
    made_by_us(llama, tmp_path / "adapter")
    change_tensors(tmp_path / "adapter", change)
    with pytest.raises(error, match=says):
        read_adapter(tmp_path / "adapter")


def test_a_file_that_is_cut_off_or_missing(llama, tmp_path) -> None:
    made_by_us(llama, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataLoss, match="damaged or cut off"):
            read_adapter(tmp_path / "adapter")
    path.unlink()
    with pytest.raises(NotFound, match="no such file"):
        read_adapter(tmp_path / "adapter")


def test_an_adapter_of_another_shape(llama, tmp_path) -> None:
    made_by_us(llama, tmp_path / "adapter")
    wider = load_decoder(random_llama(tmp_path / "wider", layers=1, hidden=128))
    gpt2 = load_decoder(random_gpt2(tmp_path / "gpt2", layers=1))
    with pytest.raises(InvalidArgument, match="the base has"):
        put_on(wider, read_adapter(tmp_path / "adapter"), "adapter")
    with pytest.raises(InvalidArgument, match="no linear map of the base"):
        put_on(gpt2, read_adapter(tmp_path / "adapter"), "adapter")
    assert not adapters(wider)
    assert not adapters(gpt2)


def test_the_base_must_be_a_model(llama, store, tmp_path) -> None:
    made_by_us(llama, tmp_path / "adapter")
    store.publish("words", "tokenizer", llama)
    with pytest.raises(InvalidArgument, match="a model is wanted; words@1 is a tokenizer"):
        import_adapter(store, tmp_path / "adapter", "tuned", base="words", workspace=tmp_path)
